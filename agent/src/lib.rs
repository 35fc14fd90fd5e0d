//! weft-agent, the control side of a node, and the `weft` command.
//!
//! | module | knows |
//! | --- | --- |
//! | `app` | the wiring: builds everything, hands it to its owners |
//! | `control` | the loop: events and commands in, snapshots to the appliers |
//! | `apply` | the appliers: datapath, routes, proxy, what is written back, and the report of all that |
//! | `sources`, `overlay` | where objects come from |
//! | `mesh` | the mesh server and the readers of other clusters |
//! | `proxy` | what weft-proxy is told |
//! | `endpoints`, `identities`, `svids`, `wireguard_key` | what this node keeps |
//! | `api`, `shared` | what others may ask |
//! | `cli` | the `weft` command |
pub mod api;
pub mod app;
pub mod apply;
pub mod cli;
pub mod config;
pub mod control;
pub mod endpoints;
pub mod host;
pub mod identities;
pub mod memory;
pub mod mesh;
pub mod overlay;
pub mod proxy;
pub mod shared;
pub mod sources;
pub mod svids;
pub mod wireguard_key;
