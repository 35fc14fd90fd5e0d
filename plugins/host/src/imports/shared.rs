//! Shared data, queues and metrics.
use super::guest::{functions, span};
use crate::{abi::Status, metrics::MetricError, queues::QueueId, services::SetError, state::HostState};
use wasmtime::{Linker, Result};

pub fn add(linker: &mut Linker<HostState>) -> Result<()> {
    functions! { linker;
        proxy_get_shared_data(guest, key: u32, key_length: u32, return_pointer: u32, return_length: u32, return_cas: u32) {
            let mut version = 0;
            guest.give(return_pointer, return_length, |memory, state, out| {
                let key = span(key, key_length).of(memory)?;
                let (value, cas) = state.shared_data.get(key).ok_or(Status::NotFound)?;
                out.extend_from_slice(&value);
                version = cas;
                Ok(())
            })?;
            guest.write_u32(return_cas, version)
        }
        proxy_set_shared_data(guest, key: u32, key_length: u32, value: u32, value_length: u32, cas: u32) {
            let (memory, state) = guest.split()?;
            let (key, value) = (span(key, key_length).of(memory)?, span(value, value_length).of(memory)?);
            state.shared_data.set(key, value, cas).map_err(|cause| match cause {
                SetError::CasMismatch => Status::CasMismatch,
                SetError::Full => Status::InternalFailure,
            })
        }
        proxy_register_shared_queue(guest, name: u32, name_length: u32, return_id: u32) {
            let (memory, state) = guest.split()?;
            let name = span(name, name_length).of(memory)?;
            let id = state.services.queues().register(&state.identity.vm_id, name).ok_or(Status::InternalFailure)?;
            if !state.queues.contains(&id) {
                state.queues.push(id);
            }
            guest.write_u32(return_id, id.0)
        }
        proxy_resolve_shared_queue(guest, vm: u32, vm_length: u32, name: u32, name_length: u32, return_id: u32) {
            let (memory, state) = guest.split()?;
            let vm = std::str::from_utf8(span(vm, vm_length).of(memory)?).map_err(|_| Status::NotFound)?;
            let vm = if vm.is_empty() { &state.identity.vm_id } else { vm };
            let name = span(name, name_length).of(memory)?;
            let id = state.services.queues().resolve(vm, name).ok_or(Status::NotFound)?;
            guest.write_u32(return_id, id.0)
        }
        proxy_enqueue_shared_queue(guest, id: u32, value: u32, value_length: u32) {
            let (memory, state) = guest.split()?;
            let value = span(value, value_length).of(memory)?;
            match state.services.queues().push(QueueId(id), value) {
                None => Err(Status::NotFound),
                Some(false) => Err(Status::InternalFailure),
                Some(true) => Ok(()),
            }
        }
        proxy_dequeue_shared_queue(guest, id: u32, return_pointer: u32, return_length: u32) {
            guest.give(return_pointer, return_length, |_, state, out| {
                let item = state.services.queues().pop(QueueId(id)).ok_or(Status::NotFound)?;
                out.extend_from_slice(&item.ok_or(Status::Empty)?);
                Ok(())
            })
        }
        proxy_define_metric(guest, kind: u32, name: u32, name_length: u32, return_id: u32) {
            let (memory, state) = guest.split()?;
            let name = span(name, name_length).of(memory)?;
            let id = state.metrics.define(kind, name).ok_or(Status::BadArgument)?;
            guest.write_u32(return_id, id)
        }
        proxy_record_metric(guest, id: u32, value: u64) {
            guest.state().metrics.record(id, value).map_err(metric_status)
        }
        proxy_increment_metric(guest, id: u32, by: i64) {
            guest.state().metrics.increment(id, by).map_err(metric_status)
        }
        proxy_get_metric(guest, id: u32, return_value: u32) {
            let value = guest.state().metrics.get(id).map_err(metric_status)?;
            guest.write_u64(return_value, value)
        }
    }
    Ok(())
}

fn metric_status(error: MetricError) -> Status {
    match error {
        MetricError::NotFound => Status::NotFound,
        MetricError::WrongKind => Status::BadArgument,
    }
}
