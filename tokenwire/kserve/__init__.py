"""Generated from protos/tokenwire/kserve by `make protos`. Not edited by hand."""
