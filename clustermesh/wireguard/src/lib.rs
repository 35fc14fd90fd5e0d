mod checksum;
#[cfg(test)]
mod offload_tests;
mod join;
mod packet;
mod split;
mod vnet;
