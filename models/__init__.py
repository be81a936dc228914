"""Training and judging of the forecast: recordings in, an ONNX file with a card out.

Nothing here runs in a daemon. `features`, `network`, `train` and `export` need torch (extra
`train`); `dataset`, `evaluate`, `judge` and `lab` do not.
"""
