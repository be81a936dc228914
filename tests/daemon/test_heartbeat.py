"""What reaches the LAS of a peer's health: every sample, once, as long as it lives."""

from tests.daemon.fleet import Fleet, StandInLas, until


async def test_each_heartbeat_tells_the_samples_since_the_one_before(
    fleet: Fleet, las: StandInLas
) -> None:
    await fleet.start("peer-1")
    # One comes with the first heartbeat; the others must come with later ones.
    await until(lambda: len(las.sampled.get("peer-1", [])) >= 4, "samples go on coming")
    told = las.sampled["peer-1"]
    assert told == list(range(told[0], told[0] + len(told)))
