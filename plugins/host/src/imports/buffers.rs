//! Bodies, TCP data, and the configuration.
use super::guest::{functions, span, u32_of, usize_of};
use crate::{
    abi::{Status, buffer},
    state::HostState,
};
use wasmtime::{Linker, Result};

/// What a plugin can put into one buffer.
const BUFFER_BYTES: usize = 64 << 20;

pub fn add(linker: &mut Linker<HostState>) -> Result<()> {
    functions! { linker;
        proxy_get_buffer_bytes(guest, number: u32, start: u32, most: u32, return_pointer: u32, return_length: u32) {
            start.checked_add(most).ok_or(Status::BadArgument)?;
            guest.give(return_pointer, return_length, |_, state, out| {
                let bytes = readable(state, number)?;
                let start = usize_of(start).min(bytes.len());
                let end = start.saturating_add(usize_of(most)).min(bytes.len());
                out.extend_from_slice(&bytes[start..end]);
                Ok(())
            })
        }
        proxy_get_buffer_status(guest, number: u32, return_size: u32, return_flags: u32) {
            let size = readable(guest.state(), number)?.len();
            guest.write_u32(return_size, u32_of(size))?;
            guest.write_u32(return_flags, 0)
        }
        proxy_set_buffer_bytes(guest, number: u32, start: u32, size: u32, data: u32, data_length: u32) {
            let (memory, state) = guest.split()?;
            let with = span(data, data_length).of(memory)?;
            let stream = state.current.as_mut().ok_or(Status::BadArgument)?;
            if stream.open_buffers.get(usize_of(number)) != Some(&true) {
                return Err(Status::BadArgument);
            }
            let buffer = &mut stream.buffers[usize_of(number)];
            if buffer.len().saturating_add(with.len()) > BUFFER_BYTES {
                return Err(Status::BadArgument);
            }
            buffer.splice(usize_of(start), usize_of(size), with);
            Ok(())
        }
    }
    Ok(())
}

fn readable(state: &HostState, number: u32) -> std::result::Result<&[u8], Status> {
    match number {
        buffer::PLUGIN_CONFIGURATION => Ok(&state.identity.configuration),
        // The host has no configuration for a VM apart from the plugin's own.
        buffer::VM_CONFIGURATION => Ok(&[]),
        0..=buffer::LAST => {
            let stream = state.current.as_ref().ok_or(Status::NotFound)?;
            if stream.open_buffers.get(usize_of(number)) != Some(&true) {
                return Err(Status::NotFound);
            }
            Ok(stream.buffers[usize_of(number)].as_slice())
        }
        _ => Err(Status::BadArgument),
    }
}
