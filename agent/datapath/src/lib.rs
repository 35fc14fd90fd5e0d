//! weft-datapath.
