//! weft-proxy: the part of a node's data plane that runs in user space. It gets connections from the kernel programs
//! through socket maps, judges them by policy and plugins, speaks HTTP and HBONE, and carries the WireGuard device. It
//! runs without the agent: its last configuration is kept on disk.
//!
//! Threads and tasks:
//! - `worker-N` (`worker`): one thread each with connections, plugin instances and pooled tunnels of its own; a task a
//!   connection, counted by a tracker that ends within the drain time.
//! - `applier` (`applier`): takes over configurations; ends with the control server.
//! - control and metrics servers (`control`, `metrics`): tasks of the main runtime, owned by [`app::App`].
//!
//! Channels: jobs to the applier (bounded, 4), generations to the workers (watch: the newest counts), what each worker
//! runs back to the applier (watch), flows to the control server (`flows`: a ring that keeps the newest 4,096).
pub mod app;
mod applier;
pub mod capture;
mod conn;
mod control;
mod filters;
mod flows;
mod generation;
mod hbone;
mod http;
mod identities;
mod metrics;
mod policy_sets;
mod serve;
mod state;
mod stream;
mod wireguard;
mod worker;
