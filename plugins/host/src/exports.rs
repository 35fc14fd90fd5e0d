//! The functions that a plugin exports. All but the memory and its allocator are optional.
use crate::state::HostState;
use wasmtime::{Instance, Result, Store, TypedFunc, WasmParams, WasmResults};

/// Looked up once per instance.
pub struct Exports {
    pub context_create: Option<TypedFunc<(u32, u32), ()>>,
    pub vm_start: Option<TypedFunc<(u32, u32), u32>>,
    pub configure: Option<TypedFunc<(u32, u32), u32>>,
    pub tick: Option<TypedFunc<u32, ()>>,
    pub queue_ready: Option<TypedFunc<(u32, u32), ()>>,
    pub done: Option<TypedFunc<u32, u32>>,
    pub log: Option<TypedFunc<u32, ()>>,
    pub delete: Option<TypedFunc<u32, ()>>,
    pub request_headers: Option<OnHeaders>,
    pub request_body: Option<TypedFunc<(u32, u32, u32), u32>>,
    pub request_trailers: Option<TypedFunc<(u32, u32), u32>>,
    pub response_headers: Option<OnHeaders>,
    pub response_body: Option<TypedFunc<(u32, u32, u32), u32>>,
    pub response_trailers: Option<TypedFunc<(u32, u32), u32>>,
    pub new_connection: Option<TypedFunc<u32, u32>>,
    pub downstream_data: Option<TypedFunc<(u32, u32, u32), u32>>,
    pub upstream_data: Option<TypedFunc<(u32, u32, u32), u32>>,
    pub downstream_close: Option<TypedFunc<(u32, u32), ()>>,
    pub upstream_close: Option<TypedFunc<(u32, u32), ()>>,
}

/// Plugins of ABI 0.1.0 are not told of the end of the stream.
pub enum OnHeaders {
    WithEnd(TypedFunc<(u32, u32, u32), u32>),
    WithoutEnd(TypedFunc<(u32, u32), u32>),
}

impl OnHeaders {
    pub fn call(&self, store: &mut Store<HostState>, context: u32, count: u32, end: bool) -> Result<u32> {
        match self {
            Self::WithEnd(function) => function.call(store, (context, count, end.into())),
            Self::WithoutEnd(function) => function.call(store, (context, count)),
        }
    }
}

impl Exports {
    pub fn of(instance: &Instance, store: &mut Store<HostState>) -> Result<Self> {
        Ok(Self {
            context_create: function(instance, store, "proxy_on_context_create")?,
            vm_start: function(instance, store, "proxy_on_vm_start")?,
            configure: function(instance, store, "proxy_on_configure")?,
            tick: function(instance, store, "proxy_on_tick")?,
            queue_ready: function(instance, store, "proxy_on_queue_ready")?,
            done: function(instance, store, "proxy_on_done")?,
            log: function(instance, store, "proxy_on_log")?,
            delete: function(instance, store, "proxy_on_delete")?,
            request_headers: on_headers(instance, store, "proxy_on_request_headers")?,
            request_body: function(instance, store, "proxy_on_request_body")?,
            request_trailers: function(instance, store, "proxy_on_request_trailers")?,
            response_headers: on_headers(instance, store, "proxy_on_response_headers")?,
            response_body: function(instance, store, "proxy_on_response_body")?,
            response_trailers: function(instance, store, "proxy_on_response_trailers")?,
            new_connection: function(instance, store, "proxy_on_new_connection")?,
            downstream_data: function(instance, store, "proxy_on_downstream_data")?,
            upstream_data: function(instance, store, "proxy_on_upstream_data")?,
            downstream_close: function(instance, store, "proxy_on_downstream_connection_close")?,
            upstream_close: function(instance, store, "proxy_on_upstream_connection_close")?,
        })
    }
}

/// `None`: the plugin does not have it. An error: it has it with other parameters than the ABI says.
pub fn function<P: WasmParams, R: WasmResults>(
    instance: &Instance,
    store: &mut Store<HostState>,
    name: &str,
) -> Result<Option<TypedFunc<P, R>>> {
    if instance.get_func(&mut *store, name).is_none() {
        return Ok(None);
    }
    instance
        .get_typed_func(store, name)
        .map(Some)
        .map_err(|cause| cause.context(format!("its export {name} has other parameters than Proxy-Wasm says")))
}

fn on_headers(instance: &Instance, store: &mut Store<HostState>, name: &str) -> Result<Option<OnHeaders>> {
    if let Ok(Some(old)) = function(instance, store, name) {
        return Ok(Some(OnHeaders::WithoutEnd(old)));
    }
    Ok(function(instance, store, name)?.map(OnHeaders::WithEnd))
}
