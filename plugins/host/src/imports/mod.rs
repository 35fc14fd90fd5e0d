//! The functions that a plugin can import. All are always there: SDKs import functions that they never call.
mod buffers;
mod calls;
mod guest;
mod headers;
mod plugin;
mod properties;
mod shared;
mod stream;
mod wasi;
mod wasi_stubs;

use crate::state::HostState;
pub(crate) use guest::u32_of as length;
use wasmtime::{Engine, Linker, Result};

pub fn linker(engine: &Engine) -> Result<Linker<HostState>> {
    let mut linker = Linker::new(engine);
    plugin::add(&mut linker)?;
    headers::add(&mut linker)?;
    buffers::add(&mut linker)?;
    properties::add(&mut linker)?;
    stream::add(&mut linker)?;
    shared::add(&mut linker)?;
    calls::add(&mut linker)?;
    for module in ["wasi_snapshot_preview1", "wasi_unstable"] {
        wasi::add(&mut linker, module)?;
        wasi_stubs::add(&mut linker, module)?;
    }
    Ok(linker)
}
