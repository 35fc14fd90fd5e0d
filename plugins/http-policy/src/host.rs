//! The four host functions on a request's way, called directly: the SDK serializes a property's path at each call and
//! cannot say why it denies.
use std::ptr::null_mut;

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_get_property(path: *const u8, length: usize, value: *mut *mut u8, value_length: *mut usize) -> u32;
    fn proxy_set_property(path: *const u8, length: usize, value: *const u8, value_length: usize) -> u32;
    fn proxy_get_header_map_value(
        map: u32,
        name: *const u8,
        name_length: usize,
        value: *mut *mut u8,
        value_length: *mut usize,
    ) -> u32;
    fn proxy_send_local_response(
        status: u32,
        details: *const u8,
        details_length: usize,
        body: *const u8,
        body_length: usize,
        headers: *const u8,
        headers_length: usize,
        grpc_status: i32,
    ) -> u32;
}

const OK: u32 = 0;
const REQUEST_HEADERS: u32 = 0;
const NO_GRPC_STATUS: i32 = -1;

/// The path's segments are joined with NUL.
pub fn property(path: &str) -> Option<Vec<u8>> {
    // SAFETY: the pointer and length are of a live string; the host writes through the other two pointers only.
    received(|value, length| unsafe { proxy_get_property(path.as_ptr(), path.len(), value, length) })
}

/// `false`: the host did not take it.
pub fn set_property(path: &str, value: &str) -> bool {
    // SAFETY: both pointers and lengths are of live strings, which the host only reads.
    unsafe { proxy_set_property(path.as_ptr(), path.len(), value.as_ptr(), value.len()) == OK }
}

/// The first value of a request header.
pub fn header(name: &str) -> Option<Vec<u8>> {
    // SAFETY: as in `property`.
    received(|value, length| unsafe {
        proxy_get_header_map_value(REQUEST_HEADERS, name.as_ptr(), name.len(), value, length)
    })
}

/// Answers the request. `headers` is a serialized map. `false`: the host refused the answer.
pub fn respond(status: u32, details: &str, body: &str, headers: &[u8]) -> bool {
    // SAFETY: all pointers and lengths are of live strings or slices, which the host only reads.
    let answer = unsafe {
        proxy_send_local_response(
            status,
            details.as_ptr(),
            details.len(),
            body.as_ptr(),
            body.len(),
            headers.as_ptr(),
            headers.len(),
            NO_GRPC_STATUS,
        )
    };
    answer == OK
}

/// A value that the host put into memory which it had from this module's `malloc`.
fn received(call: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> Option<Vec<u8>> {
    let (mut value, mut length) = (null_mut(), 0);
    if call(&mut value, &mut length) != OK {
        return None;
    }
    if value.is_null() {
        return Some(Vec::new());
    }
    // SAFETY: the SDK's `malloc` made this allocation as a boxed slice of exactly `length` bytes, and the host, which
    // filled it, gave it to us for good.
    Some(unsafe { Vec::from_raw_parts(value, length, length) })
}
