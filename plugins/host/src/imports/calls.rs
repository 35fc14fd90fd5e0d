//! Calls to other services and to functions of the host. No upstream is open to plugins, so each call is answered as
//! the ABI answers an upstream that is not known.
use super::guest::functions;
use crate::{abi::Status, state::HostState};
use wasmtime::{Linker, Result};

pub fn add(linker: &mut Linker<HostState>) -> Result<()> {
    functions! { linker;
        proxy_http_call(
            guest, _upstream: u32, _upstream_length: u32, _headers: u32, _headers_length: u32, _body: u32,
            _body_length: u32, _trailers: u32, _trailers_length: u32, _timeout: u32, _return_id: u32
        ) {
            refused(guest.state(), "proxy_http_call");
            Err(Status::BadArgument)
        }
        proxy_grpc_call(
            guest, _upstream: u32, _upstream_length: u32, _service: u32, _service_length: u32, _method: u32,
            _method_length: u32, _metadata: u32, _metadata_length: u32, _message: u32, _message_length: u32,
            _timeout: u32, _return_id: u32
        ) {
            refused(guest.state(), "proxy_grpc_call");
            Err(Status::ParseFailure)
        }
        proxy_grpc_stream(
            guest, _upstream: u32, _upstream_length: u32, _service: u32, _service_length: u32, _method: u32,
            _method_length: u32, _metadata: u32, _metadata_length: u32, _return_id: u32
        ) {
            refused(guest.state(), "proxy_grpc_stream");
            Err(Status::ParseFailure)
        }
        proxy_grpc_send(_guest, _id: u32, _message: u32, _message_length: u32, _end: u32) { Err(Status::NotFound) }
        proxy_grpc_cancel(_guest, _id: u32) { Err(Status::NotFound) }
        proxy_grpc_close(_guest, _id: u32) { Err(Status::NotFound) }
        proxy_get_status(_guest, _return_code: u32, _return_pointer: u32, _return_length: u32) {
            Err(Status::BadArgument)
        }
        proxy_call_foreign_function(
            _guest, _name: u32, _name_length: u32, _arguments: u32, _arguments_length: u32, _return_pointer: u32,
            _return_length: u32
        ) {
            Err(Status::NotFound)
        }
        // Of ABI 0.1.0: the plugin's configuration in one piece.
        proxy_get_configuration(guest, return_pointer: u32, return_length: u32) {
            guest.give(return_pointer, return_length, |_, state, out| {
                out.extend_from_slice(&state.identity.configuration);
                Ok(())
            })
        }
    }
    Ok(())
}

fn refused(state: &mut HostState, function: &str) {
    const WARN: u32 = 3;
    let message = format!("{function}: this host lets plugins call no other service");
    state.log.write(&state.identity.name, WARN, message.as_bytes());
}
