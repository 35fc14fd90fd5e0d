//! Flows: who talked to whom, and what was decided. A bounded ring that `weft observe` reads, filters for it, and the
//! kernel's events put into the same words as the proxy's.
pub mod event;
pub mod filter;
pub mod ring;
