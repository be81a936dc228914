"""gRPC: servicers, streams, credentials. Translates and bounds; never decides."""
