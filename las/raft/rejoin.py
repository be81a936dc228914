"""When a member that lost its directory may vote again.

The lost directory had acknowledged entries and given votes that nobody here remembers. The member
gets its vote back when all of this holds, checked after each tick:

1. Since it came back it has heard Hellos of voting members that are a majority of the group without
   itself. An election in which the lost directory's vote counted needed one of them, so that term
   is not above the highest term among these Hellos.
2. It follows a leader, and its own commit index has reached the leader's and lies on an entry of
   the leader's term. Whatever was committed with the lost directory's word is at or below it.

From then on it votes in terms above the highest term heard (`vote_floor`). In a group of three that
means: both others have to be up once. A group whose majority lost its directories never gets there;
that loss is for a person to decide about.

Must not: change anything but the store's manifest.
"""

from las.raft.guard import Guard
from las.raft.journal import Journal
from las.raft.library import ReplicatedText
from las.raft.store import Store


class Rejoin:
    """Watches over a store that rejoins; does nothing once it is done."""

    def __init__(
        self,
        *,
        store: Store,
        library: ReplicatedText,
        journal: Journal,
        guard: Guard,
        enforced: bool,
    ) -> None:
        """`enforced` is False only in a test that wants to see what happens then."""
        self._enforced = enforced
        self._store = store
        self._library = library
        self._journal = journal
        self._guard = guard
        self._terms: dict[str, int] = {}

    def may_vote(self) -> bool:
        """Tells whether this member votes and stands at all."""
        return not (self._store.manifest.rejoining and self._enforced)

    def may_vote_in(self, term: int) -> bool:
        """Tells whether this member may give a vote in `term`."""
        return self.may_vote() and term > self._store.manifest.vote_floor

    def hear_hello(self, peer: str, term: int, *, voting: bool) -> None:
        """Notes the term of a member that remembers its votes."""
        if voting:
            self._terms[peer] = max(term, self._terms.get(peer, 0))
        else:
            self._terms.pop(peer, None)

    def after_tick(self) -> None:
        """Ends the rejoin if both conditions hold. Raises OSError; the caller ends the process."""
        manifest = self._store.manifest
        if not manifest.rejoining:
            return
        leader = self._library._getLeader()
        if leader is None or len(self._terms) * 2 <= len(manifest.members):
            return
        commit_index = self._library.raftCommitIndex
        if (
            commit_index >= max(self._guard.leader_commit_index, 1)
            and self._journal.term_at(commit_index) == self._library.raftCurrentTerm
        ):
            floor = max(self._library.raftCurrentTerm, *self._terms.values())
            # What the vote rests on has to be on the disk before the right to vote is.
            self._journal.sync()
            self._store.finish_rejoin(floor)
