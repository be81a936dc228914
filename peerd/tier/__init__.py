"""Tiered storage: the past of a shard as objects in S3 or in a directory (docs/tiers.md).

- `format`: a range of one segment as one object, and back. Pure.
- `manifest`: the list of a shard's objects. Pure.
- `keys`: which keys encrypt and decrypt.
- `store`: what an object store is asked for, with deadlines and bounded repetition; `directory` and
  `s3` are the two that there are.
- `reader`: batches from the tier, with read-ahead and a bounded cache.
- `backup`: what it takes beside the records to begin a cluster anew; `pruning`: which of them go.
- `heirs`: whose all this is, if a cluster was restored from it.
- `writing`: one object put there, read back, compared, and named by a new manifest.

Whatever a committed map names was read back and compared with what the stores have. Names are never
used twice for other bytes: an object or manifest that is there already is only ever looked at.

Must not: know the daemons; decide what goes to the tier, or what stores may drop.
"""
