"""The gRPC services of a LAS node: requests in, committed state or typed refusals out."""
