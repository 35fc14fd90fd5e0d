//! weft-agent.
