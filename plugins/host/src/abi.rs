//! The numbers of Proxy-Wasm 0.2.

/// What a host function answers. SDKs abort on codes that they do not expect, so only these are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    Ok = 0,
    NotFound = 1,
    BadArgument = 2,
    ParseFailure = 4,
    InvalidMemoryAccess = 6,
    Empty = 7,
    CasMismatch = 8,
    InternalFailure = 10,
}

/// Header maps that a stream has, by their number in the ABI; higher numbers belong to calls.
pub mod map {
    pub const REQUEST_HEADERS: usize = 0;
    pub const REQUEST_TRAILERS: usize = 1;
    pub const RESPONSE_HEADERS: usize = 2;
    pub const RESPONSE_TRAILERS: usize = 3;
    pub const COUNT: usize = 4;
    /// The highest number that the ABI knows.
    pub const LAST: u32 = 7;
}

/// Buffers by their number in the ABI; the first four belong to a stream.
pub mod buffer {
    pub const REQUEST_BODY: usize = 0;
    pub const RESPONSE_BODY: usize = 1;
    pub const DOWNSTREAM_DATA: usize = 2;
    pub const UPSTREAM_DATA: usize = 3;
    pub const COUNT: usize = 4;
    pub const VM_CONFIGURATION: u32 = 6;
    pub const PLUGIN_CONFIGURATION: u32 = 7;
    pub const LAST: u32 = 8;
}

/// Halves of a stream that can be continued or closed, by their number in the ABI.
pub mod half {
    pub const REQUEST: usize = 0;
    pub const RESPONSE: usize = 1;
    pub const DOWNSTREAM: usize = 2;
    pub const UPSTREAM: usize = 3;
    pub const COUNT: usize = 4;
}

pub const ACTION_CONTINUE: u32 = 0;
