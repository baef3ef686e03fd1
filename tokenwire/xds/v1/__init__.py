"""Generated from protos/tokenwire/xds/v1 by `make protos`. Not edited by hand."""
