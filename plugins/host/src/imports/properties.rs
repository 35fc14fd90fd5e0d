//! Properties: what the plugin set, what the host knows, what the caller knows.
use super::guest::{functions, span};
use crate::{
    abi::{Status, map},
    headers::Headers,
    pairs,
    properties::put_int,
    state::{HostState, StreamState},
};
use wasmtime::{Linker, Result};

/// Longer paths name nothing.
const SEGMENTS: usize = 16;
/// Of one value that a plugin sets.
const VALUE_BYTES: usize = 64 << 10;

pub fn add(linker: &mut Linker<HostState>) -> Result<()> {
    functions! { linker;
        proxy_get_property(guest, path: u32, path_length: u32, return_pointer: u32, return_length: u32) {
            guest.give(return_pointer, return_length, |memory, state, out| {
                let path = without_final_nul(span(path, path_length).of(memory)?);
                if get(state, path, out) { Ok(()) } else { Err(Status::NotFound) }
            })
        }
        proxy_set_property(guest, path: u32, path_length: u32, value: u32, value_length: u32) {
            let (memory, state) = guest.split()?;
            let path = without_final_nul(span(path, path_length).of(memory)?);
            let value = span(value, value_length).of(memory)?;
            let stream = state.current.as_mut().ok_or(Status::NotFound)?;
            let mut buffer = [""; SEGMENTS];
            let segments = split(path, &mut buffer).ok_or(Status::BadArgument)?;
            if value.len() > VALUE_BYTES || !stream.keep(path, value) {
                return Err(Status::BadArgument);
            }
            stream.properties.set(segments, value);
            Ok(())
        }
    }
    Ok(())
}

/// Old SDKs end a path with a NUL.
fn without_final_nul(path: &[u8]) -> &[u8] {
    path.strip_suffix(&[0]).unwrap_or(path)
}

fn split<'a, 'b>(path: &'a [u8], buffer: &'b mut [&'a str; SEGMENTS]) -> Option<&'b [&'a str]> {
    let path = std::str::from_utf8(path).ok()?;
    let mut count = 0;
    for segment in path.split('\0') {
        *buffer.get_mut(count)? = segment;
        count += 1;
    }
    Some(&buffer[..count])
}

fn get(state: &HostState, path: &[u8], out: &mut Vec<u8>) -> bool {
    let own = match path {
        b"plugin_name" => Some(&state.identity.name),
        b"plugin_root_id" => Some(&state.identity.root_id),
        b"plugin_vm_id" => Some(&state.identity.vm_id),
        _ => None,
    };
    if let Some(own) = own {
        out.extend_from_slice(own.as_bytes());
        return true;
    }
    let Some(stream) = &state.current else { return false };
    if let Some(value) = stream.kept(path) {
        out.extend_from_slice(value);
        return true;
    }
    let mut buffer = [""; SEGMENTS];
    let Some(path) = split(path, &mut buffer) else { return false };
    from_headers(stream, path, out) || stream.properties.get(path, out)
}

/// `request.*` and `response.*`, as far as the headers at hand tell.
fn from_headers(stream: &StreamState, path: &[&str], out: &mut Vec<u8>) -> bool {
    let number = match path.first() {
        Some(&"request") => map::REQUEST_HEADERS,
        Some(&"response") => map::RESPONSE_HEADERS,
        _ => return false,
    };
    let Some(headers) = &stream.maps[number] else { return false };
    let value = match path {
        ["request", "path"] => headers.get(b":path"),
        ["request", "url_path"] => headers.url_path().map(str::as_bytes),
        ["request", "query"] => headers.query().map(str::as_bytes),
        ["request", "method"] => headers.get(b":method"),
        ["request", "host"] => headers.get(b":authority"),
        ["request", "scheme"] => headers.get(b":scheme"),
        ["request", "referer"] => headers.get(b"referer"),
        ["request", "useragent"] => headers.get(b"user-agent"),
        ["request", "id"] => headers.get(b"x-request-id"),
        [_, "headers", name] => headers.get(name.as_bytes()),
        [_, "headers"] => {
            pairs::encode(|| headers.iter(), out);
            return true;
        }
        ["response", "code"] => return status(headers, out),
        _ => return false,
    };
    value.inspect(|value| out.extend_from_slice(value)).is_some()
}

fn status(headers: &Headers, out: &mut Vec<u8>) -> bool {
    headers.status().inspect(|status| put_int(out, status.as_u16().into())).is_some()
}
