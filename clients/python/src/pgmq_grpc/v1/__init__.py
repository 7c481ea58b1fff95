"""Generated from the contract, proto/pgmq/v1: messages, enumerations and stubs."""
