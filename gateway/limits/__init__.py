"""What each tenant may use of the gateway: requests, tokens, streams; counted for all workers together."""
