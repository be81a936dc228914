"""What the demo tells while it watches, in the order in which it follows."""

from las.v1 import fleet_pb2, forecast_pb2, shard_map_pb2
from peerd.cli.demo.watch import Watcher


class Forecasts:
    """One evaluation of the LAS that has not acted on it yet."""

    def __init__(self, forecast):
        self.las = self
        self._forecast = forecast

    async def watch_forecasts(self):
        yield forecast_pb2.WatchForecastResponse(forecasts=[self._forecast])


async def test_the_forecast_is_told_before_what_follows_from_it():
    told = []
    forecast = forecast_pb2.NodeForecast(
        node="peer-1",
        horizons=[forecast_pb2.Horizon(horizon_s=600, probability=0.91)],
        reasons=[forecast_pb2.ForecastReason(text="fsync p50 ×80")],
    )
    watcher = Watcher(
        Forecasts(forecast), "orders", "peer-1", start=0.0, tell=lambda _, line: told.append(line)
    )
    await watcher._forecasts()
    assert told == []
    node = shard_map_pb2.Node(name="peer-1", at_risk=True)
    watcher._node(fleet_pb2.NodeStatus(node=node, shielded=True, expendable=True))
    watcher._node(fleet_pb2.NodeStatus(node=node, shielded=True, expendable=True))
    assert [line.split(":")[0] for line in told] == ["forecast", "shielded", "expendable"]
    assert told[0].endswith("p = 0.91     because fsync p50 ×80")
    assert watcher.story.at_risk_s <= watcher.story.shielded_s
