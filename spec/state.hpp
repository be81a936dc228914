// The state of the model, and the promises that are checked in every state.
//
// How messages are modelled: nothing that was sent is ever taken back. Replicate, Begin, Promise
// requests and their answers, Confirm and every LAS notice may be received at any later time, any
// number of times, in any order, or never. An ack is the highest durable end that a store ever
// reported for an epoch. So loss, delay, duplication, reordering and pauses need no states of their own.
//
// A batch is acknowledged in the instant in which it could be (a voters durable, the primary up).
// That is the worst case for every promise about acknowledged batches.
//
// Variant as-built: what real processes do is a little more. A primary acknowledges later than it could, and its X is what
// it has acknowledged; it learns of its store's promise after that is durable, may begin an epoch until then, and its store writes what was queued also
// when it has stopped; it may decline what is dead already; news of the map may be old; a copy is filled batch by batch, by
// any store. tests/conformance compares the acceptor of real runs with the model under this variant.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <vector>
#include <functional>
#include <algorithm>

#ifndef PEERS
#define PEERS 4
#endif
#ifndef EPOCHS
#define EPOCHS 5
#endif
#ifndef OFFSETS
#define OFFSETS 3
#endif
enum { NP = PEERS, NE = EPOCHS + 1, NO = OFFSETS };   // array bounds; epochs are 1..EPOCHS
typedef uint8_t u8;

enum Status : u8 { FREE, RESERVED, PREPARED, OPEN, SEALED, DEAD };

struct Seg { u8 present : 1, begin : 2, end : 2; u8 rec[NO]; };   // one segment on one store
struct Peer {
  u8 promised, adopted;                   // durable: highest promise, last adopted epoch
  u8 role;                                // volatile: the epoch it orders now, 0 = none
  u8 alive;                               // 0: the store is lost for good
  Seg seg[NE];
};
struct Answer { u8 given : 1, end : 2, next : 1, x : 2, end2 : 2; };  // one byte: answer to Promise(f)
struct Epoch {
  u8 status, config;
  u8 begin, end, begun;                   // begun: its primary has started, so its frames may exist
  u8 view_open, view_prepared;            // what the LAS actor saw when it drew this epoch
  u8 may_start;                           // the boot id named as primary is still that process
  u8 switched, x;                         // 1: Begin(this epoch, x) was sent; 2: the old primary declined it
  u8 table;                               // producer table as of begin: set of record ids
  u8 known;                               // as-built: the commit offset as its primary knows it
  u8 assigned;                            // end of the primary's log in memory
  u8 cur[NO];                             // what the primary put at each offset
  u8 sent[NO];                            // set of record ids ever sent for each offset
  Answer answer[NP];
  u8 acked_end[NP];                       // highest Ack(epoch, end) ever sent by each store
};
struct State {
  Peer peer[NP];
  Epoch epoch[NE];
  u8 open, prepared, next_epoch;          // the LAS register and its epoch counter
  u8 ack_epoch[NO], ack_rec[NO];          // ghost: what was acknowledged at each offset
  u8 floor_[4];                           // ghost: acknowledged end when record id was first assigned, +1
  u8 crashes, losses, preps, fences;
  u8 read_peer, read_epoch, read_bits;    // a linearizable read that would be stale (peer + 1)
  u8 split_x;                             // the map's split: X + 1 once the closed segment is open, else 0
  u8 split_said;                          // ghost: set of record ids that were refused with SPLIT
  u8 child_acked;                         // ghost: a child shard has acknowledged something
  u8 late;                                // ghost: set of record ids first ordered in the parent after that
  u8 served;                              // ghost: offsets whose ack_* says what a reader was served, not a client
};

struct Config { int primary, voters, replicas, acks; bool closed;  };
static std::vector<Config> configs;       // configs[0] is the first segment's
static int peers = 3, offsets = 2, records = 2, max_crash = 1, max_loss = 0, max_prep = 1, max_fence = 1;
static bool with_fetch = false, with_read = true, with_kept = false, with_split = false;
static std::vector<std::string> mutants;
static bool M(const char *name) { for (auto &m : mutants) if (m == name) return true; return false; }
// mutants and variants, read once
static bool m_quorum, m_queue, m_nostop, m_fencevoters, m_min, m_naive, m_max, m_resume, m_resume_orig, m_sealvolatile,
    m_lostsame, m_read, m_table, m_ackepoch, m_stale_end, m_guard, m_dup, m_forget, m_restart_begin, m_ignore_adopt,
    m_withdraw, m_adopt, m_nodrain, m_drop, m_nonvoter, v_drain, m_tabtail, v_writefirst, v_trim, v_learn, m_fetch, m_decline, m_oldanswers,
    m_keptearly, m_oldtail, m_ownend, m_tailkept, m_reopens, m_childprepare, m_childbegin, m_splitearly, m_splittable, m_splitdead,
    m_xprepare, m_fencekeeps, m_splitunasked, v_built;

static int bits(int x) { return __builtin_popcount(x); }
static const Config &cfg(const State &s, int e) { return configs[s.epoch[e].config]; }

static std::string violation;             // set by the first broken promise in a step
static void broken(const char *what) { if (violation.empty()) violation = what; }

static int acked_end(const State &s) { for (int o = NO; o-- > 0;) if (s.ack_epoch[o]) return o + 1; return 0; }

static bool holds(const State &s, int p, int e, int o, int r) {
  const Seg &g = s.peer[p].seg[e];
  return g.present && g.begin <= o && o < g.end && g.rec[o] == r;
}
static bool whole(const State &s, int p, int e) {           // p holds the sealed segment e
  const Seg &g = s.peer[p].seg[e];
  return s.epoch[e].begin == s.epoch[e].end || (g.present && g.begin <= s.epoch[e].begin && g.end >= s.epoch[e].end);
}
static int content(const State &s, int e, int o) {          // the record at (e, o): the stores agree, else G2
  int found = 0;
  for (int p = 0; p < peers; p++) {
    const Seg &g = s.peer[p].seg[e];
    if (g.present && g.begin <= o && o < g.end) {
      if (found && found != g.rec[o]) broken("G2 two stores hold different records at one (epoch, offset) of the map");
      found = g.rec[o];
    }
  }
  return found ? found : s.epoch[e].cur[o];
}

// Promises about acknowledged batches against the map and the stores.
static void check_state(const State &s) {
  for (int o = 0; o < offsets; o++) if (s.ack_epoch[o]) {
    int e = s.ack_epoch[o], r = s.ack_rec[o];
    const Epoch &E = s.epoch[e];
    bool in_map = (E.status == OPEN && o >= E.begin) || (E.status == PREPARED) ||
                  (E.status == SEALED && E.begin <= o && o < E.end);
    bool read = s.served >> o & 1;
    if (!in_map) broken(read ? "G12 what a reader was served is outside the log that the map defines" : "G1 an acknowledged batch is outside the log that the map defines");
    bool copy = false;
    for (int p = 0; p < peers; p++) copy |= holds(s, p, e, o, r);
    if (!copy) broken(read ? "G12 what a reader was served is on no store, within the loss bound" : "G1 an acknowledged batch is on no store, within the loss bound");
    if (s.split_x && o >= s.split_x - 1) broken("G8 an acknowledged record of the parent lies at or beyond X");
  }
}
// The map: segments tile, epochs grow, no record twice, a newly sealed segment is whole somewhere.
static void check_map(const State &s) {
  int end = 0, seen = 0;
  for (int e = 1; e < s.next_epoch; e++) {
    const Epoch &E = s.epoch[e];
    if (E.status == SEALED) {
      if (E.begin != end || E.end < E.begin) broken("G7 segments do not tile");
      end = E.end;
      bool is_whole = false;
      for (int p = 0; p < peers; p++) is_whole |= whole(s, p, e);
      if (!is_whole && !s.losses) broken("G1 a sealed segment is whole on no store");
      for (int o = E.begin; o < E.end; o++) {
        int r = content(s, e, o);
        if (seen >> r & 1) broken("G4 a record is in the log twice");
        seen |= 1 << r;
        if (s.split_said >> r & 1) broken("G4 a record that was refused with SPLIT is in the log");
      }
    } else if (E.status == OPEN && E.begin != end) broken("G7 the open segment does not begin where the last ended");
  }
  check_state(s);
}

static void acknowledge(State &s, int e, int o, int r) {
  if (s.ack_epoch[o]) {
    if (s.ack_epoch[o] != e) broken("G2 two primaries acknowledged at the same offset");
    else if (s.ack_rec[o] != r) broken("G2 two records acknowledged at the same offset");
    if (!(s.served >> o & 1)) return;
    s.served &= ~(1 << o); s.ack_epoch[o] = 0;              // a reader had it before its client
  }
  for (int i = 0; i < offsets; i++) if (s.ack_epoch[i] && s.ack_rec[i] == r) broken("G4 a record acknowledged at two offsets");
  if (s.floor_[r] && o < s.floor_[r] - 1) broken("G3 an earlier acknowledged batch has a larger offset");
  if (s.split_said >> r & 1) broken("G4 a record that was refused with SPLIT is acknowledged");
  if (s.late >> r & 1) broken("G8 the parent acknowledged a record that came after a child had begun");
  int copies = 0;
  for (int p = 0; p < peers; p++) copies += holds(s, p, e, o, r);
  if (copies + s.losses < cfg(s, e).acks) broken("G1 acknowledged with fewer than acks copies");
  s.ack_epoch[o] = e; s.ack_rec[o] = r;
  check_state(s);
}
// A reader was served record r at (e, o): from now on it must survive like what was acknowledged (G12).
static bool serve(State &s, int e, int o, int r) {
  if (s.ack_epoch[o]) {
    if (s.ack_epoch[o] != e || s.ack_rec[o] != r) broken("G2 a reader was served another record than before");
    return false;
  }
  s.ack_epoch[o] = e; s.ack_rec[o] = r; s.served |= 1 << o;
  check_state(s);
  return true;
}
static bool committed(const State &s, int e, int o) {
  const Config &c = cfg(s, e);
  int n = 0;
  for (int p = 0; p < peers; p++) if (c.voters >> p & 1) {
    int end = s.epoch[e].acked_end[p];
    if (m_ackepoch) for (int i = 1; i < e; i++) end = std::max(end, (int)s.epoch[i].acked_end[p]);
    n += end > o;
  }
  return n >= c.acks;
}
static int commit_offset(const State &s, int e) {
  int o = s.epoch[e].begin;
  while (o < s.epoch[e].assigned && committed(s, e, o)) o++;
  return o;
}
static int known_commit(const State &s, int e) { return v_built ? (int)s.epoch[e].known : commit_offset(s, e); }
static void acknowledge_all(State &s, int e) {              // the primary of e, if it is up
  if (v_built) return;
  if (s.peer[cfg(s, e).primary].role != e) return;
  int c = commit_offset(s, e);
  for (int o = s.epoch[e].begin; o < c; o++) acknowledge(s, e, o, s.epoch[e].cur[o]);
}

static void depose(State &s, int p, int e) { if (!v_built && s.peer[p].role < e) s.peer[p].role = 0; }

static void adopt(State &s, int p, int e) {
  Peer &P = s.peer[p];
  int begin = s.epoch[e].begin;
  P.adopted = e; P.promised = std::max(P.promised, (u8)e);
  depose(s, p, e);
  P.seg[e].present = 1; P.seg[e].begin = begin; P.seg[e].end = begin;
  if (m_drop) for (int i = 1; i < e; i++) if (P.seg[i].present && P.seg[i].end > begin) {
    P.seg[i].end = begin;
    for (int o = begin; o < NO; o++) P.seg[i].rec[o] = 0;
    if (P.seg[i].begin > begin) P.seg[i] = Seg{};
  }
}
static void start(State &s, int p, int e, int begin) {
  Epoch &E = s.epoch[e];
  if (E.begun && E.begin != begin) broken("G7 one epoch begins at two offsets");
  E.begin = begin; E.begun = 1; E.assigned = E.known = begin;
  if (!m_restart_begin) E.may_start = 0;
  if (m_restart_begin) memset(E.cur, 0, NO);
  s.peer[p].role = e;
}
static int table_at(const State &s, int e, int x) {         // producer table of the primary of e as of x
  int t = s.epoch[e].table;
  for (int o = s.epoch[e].begin; o < x; o++) t |= 1 << s.epoch[e].cur[o];
  return t;
}

// The X rule: the rank-th largest of the ends, rank = a - (n - k).
static int cut(std::vector<int> ends, int n, int a) {
  std::sort(ends.rbegin(), ends.rend());
  int rank = a - (n - (int)ends.size());
  if (rank < 1) rank = 1;                                   // only a mutant gets here
  if (m_min) rank = ends.size();
  if (m_naive) rank = std::min(a, (int)ends.size());
  if (m_max) rank = 1;
  return ends[rank - 1];
}

typedef std::function<void(const State &, const char *)> Emit;
static char label[160];
#define SAY(...) (snprintf(label, sizeof label, __VA_ARGS__), label)
