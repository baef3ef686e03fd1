"""Generated from protos/tokenwire/v1 by `make protos`. Not edited by hand."""
