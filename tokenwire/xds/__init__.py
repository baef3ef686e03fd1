"""Messages of gRPC's own xDS client, as far as they are read."""
