"""The Log Anticipation Service: owns the shard map, foresees failures and plans for them."""
