//! Client and server code from the protos.
fn main() -> std::io::Result<()> {
    tonic_prost_build::configure()
        .bytes(".") // keys and values are shared between the store and all its watchers, not copied
        .compile_protos(&["proto/etcdserverpb.proto"], &["proto"])
}
