//! Steering the stream: answer it, continue it, close it, choose which one is meant.
use super::guest::{functions, span, usize_of};
use crate::{
    abi::{Status, half},
    headers::Headers,
    outcome::LocalResponse,
    pairs,
    state::HostState,
};
use bytes::Bytes;
use http::StatusCode;
use wasmtime::{Linker, Result};

pub fn add(linker: &mut Linker<HostState>) -> Result<()> {
    functions! { linker;
        proxy_send_local_response(
            guest, code: u32, details: u32, details_length: u32, body: u32, body_length: u32,
            headers: u32, headers_length: u32, grpc_status: i32
        ) {
            let (memory, state) = guest.split()?;
            let details = span(details, details_length).of(memory)?;
            let body = span(body, body_length).of(memory)?;
            let pairs = pairs::decode(span(headers, headers_length).of(memory)?).ok_or(Status::BadArgument)?;
            let status = final_status(code).ok_or(Status::BadArgument)?;
            let stream = state.current.as_mut().ok_or(Status::BadArgument)?;
            let mut headers = Headers::default();
            for (name, value) in pairs {
                headers.add(name, value).map_err(|_| Status::BadArgument)?;
            }
            // The first answer stands.
            stream.local_response.get_or_insert_with(|| LocalResponse {
                status,
                headers: headers.fields,
                body: Bytes::copy_from_slice(body),
                details: String::from_utf8_lossy(details).into_owned(),
                grpc_status: u32::try_from(grpc_status).ok(),
            });
            Ok(())
        }
        proxy_continue_stream(guest, half: u32) {
            let stream = guest.state().current.as_mut().ok_or(Status::BadArgument)?;
            *stream.resumed.get_mut(usize_of(half)).ok_or(Status::BadArgument)? = true;
            Ok(())
        }
        proxy_continue_request(guest) {
            guest.state().current.as_mut().ok_or(Status::BadArgument)?.resumed[half::REQUEST] = true;
            Ok(())
        }
        proxy_continue_response(guest) {
            guest.state().current.as_mut().ok_or(Status::BadArgument)?.resumed[half::RESPONSE] = true;
            Ok(())
        }
        // Routes are chosen after all plugins have seen the request, so there is no cached one.
        proxy_clear_route_cache(_guest) { Ok(()) }
        proxy_close_stream(guest, half: u32) {
            let stream = guest.state().current.as_mut().ok_or(Status::BadArgument)?;
            if usize_of(half) >= half::COUNT {
                return Err(Status::BadArgument);
            }
            stream.close = true;
            Ok(())
        }
        proxy_set_effective_context(guest, context: u32) {
            if guest.state().switch_to(context) { Ok(()) } else { Err(Status::BadArgument) }
        }
        // The host waits for no context that said it is not done yet.
        proxy_done(_guest) { Ok(()) }
    }
    Ok(())
}

/// A status that can be an answer of its own.
fn final_status(code: u32) -> Option<StatusCode> {
    let code = u16::try_from(code).ok().filter(|code| (200..600).contains(code))?;
    StatusCode::from_u16(code).ok()
}
