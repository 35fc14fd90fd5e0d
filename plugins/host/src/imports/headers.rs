//! Header maps.
use super::guest::{Guest, functions, span, u32_of, usize_of};
use crate::{
    abi::{Status, map},
    headers::Headers,
    pairs,
    state::HostState,
};
use wasmtime::{Linker, Result};

pub fn add(linker: &mut Linker<HostState>) -> Result<()> {
    functions! { linker;
        proxy_get_header_map_size(guest, map: u32, return_size: u32) {
            let size = readable(guest.state(), map)?.map_or(0, |headers| pairs::encoded_size(headers.iter()));
            guest.write_u32(return_size, u32_of(size))
        }
        proxy_get_header_map_pairs(guest, map: u32, return_pointer: u32, return_length: u32) {
            guest.give(return_pointer, return_length, |_, state, out| {
                if let Some(headers) = readable(state, map)? {
                    pairs::encode(|| headers.iter(), out);
                }
                Ok(())
            })
        }
        proxy_set_header_map_pairs(guest, map: u32, start: u32, length: u32) {
            let (memory, headers) = writable(&mut guest, map)?;
            let pairs = pairs::decode(span(start, length).of(memory)?).ok_or(Status::BadArgument)?;
            headers.set_all(&pairs).map_err(|_| Status::BadArgument)
        }
        proxy_get_header_map_value(guest, map: u32, key: u32, key_length: u32, return_pointer: u32, return_length: u32) {
            guest.give(return_pointer, return_length, |memory, state, out| {
                let name = span(key, key_length).of(memory)?;
                let value = readable(state, map)?.and_then(|headers| headers.get(name)).ok_or(Status::NotFound)?;
                out.extend_from_slice(value);
                Ok(())
            })
        }
        proxy_add_header_map_value(guest, map: u32, key: u32, key_length: u32, value: u32, value_length: u32) {
            let (memory, headers) = writable(&mut guest, map)?;
            let (name, value) = (span(key, key_length).of(memory)?, span(value, value_length).of(memory)?);
            bounded(headers)?.add(name, value).map_err(|_| Status::BadArgument)
        }
        proxy_replace_header_map_value(guest, map: u32, key: u32, key_length: u32, value: u32, value_length: u32) {
            let (memory, headers) = writable(&mut guest, map)?;
            let (name, value) = (span(key, key_length).of(memory)?, span(value, value_length).of(memory)?);
            bounded(headers)?.replace(name, value).map_err(|_| Status::BadArgument)
        }
        proxy_remove_header_map_value(guest, map: u32, key: u32, key_length: u32) {
            let (memory, headers) = writable(&mut guest, map)?;
            headers.remove(span(key, key_length).of(memory)?);
            Ok(())
        }
    }
    Ok(())
}

/// `None`: the map exists in the ABI, but not in this stream or not now.
fn readable(state: &HostState, number: u32) -> std::result::Result<Option<&Headers>, Status> {
    if number > map::LAST {
        return Err(Status::BadArgument);
    }
    Ok(state.current.as_ref().and_then(|stream| stream.maps.get(usize_of(number))?.as_ref()))
}

/// The map that the current callback is about, beside the guest's memory.
fn writable<'a>(guest: &'a mut Guest<'_>, number: u32) -> std::result::Result<(&'a [u8], &'a mut Headers), Status> {
    let (memory, state) = guest.split()?;
    let stream = state.current.as_mut().ok_or(Status::BadArgument)?;
    let number = usize_of(number);
    if stream.open_maps.get(number) != Some(&true) {
        return Err(Status::BadArgument);
    }
    let headers = stream.maps[number].as_mut().ok_or(Status::BadArgument)?;
    Ok((memory, headers))
}

/// A plugin cannot make a map grow without end.
fn bounded(headers: &mut Headers) -> std::result::Result<&mut Headers, Status> {
    if headers.fields.len() < pairs::MAX_PAIRS { Ok(headers) } else { Err(Status::BadArgument) }
}
