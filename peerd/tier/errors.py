"""What can go wrong with the tier: one class per reason that somebody would act on.

Every message is one line: what was wrong, where, what to do. `code` is what logs and docs call it.
None of them ever means that an object is gone for good or may be replaced in its place.
"""


class TierError(Exception):
    """Base of all errors of this package."""

    code = "TIER_ERROR"


class TierUnavailable(TierError):
    """The store did not answer in time, or answered with an error of its own, several times."""

    code = "TIER_UNAVAILABLE"


class NoCredentials(TierError):
    """The store refuses whoever asks, or nobody said who asks."""

    code = "NO_CREDENTIALS"


class MissingObject(TierError):
    """There is nothing under this name, though something was to be there."""

    code = "MISSING_OBJECT"


class DamagedObject(TierError):
    """The bytes are not those that were written: flipped, cut, or no such object at all."""

    code = "DAMAGED_OBJECT"


class ForeignObject(TierError):
    """A sound object of another cluster, log, shard, epoch or range than was to be there."""

    code = "FOREIGN_OBJECT"


class Inherited(TierError):
    """What is there belongs to a cluster that was restored from it: only that one may change it."""

    code = "INHERITED"


class WrongKey(TierError):
    """It is encrypted, with a key that this peer was not given; or was tampered with."""

    code = "WRONG_KEY"


class FormatUnknown(TierError):
    """Written by a newer version of this software."""

    code = "FORMAT_UNKNOWN"


class NotConfigured(TierError):
    """This peer was given no tier, or not all that it needs for it."""

    code = "TIER_NOT_CONFIGURED"
