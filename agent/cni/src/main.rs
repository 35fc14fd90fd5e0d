//! weft-cni: the CNI plugin that gives pods their network on a Weft node.
//!
//! A container runtime runs it in the node's network namespace for each pod: environment variables say what to do, the
//! network configuration comes on standard input, the result or error goes to standard output as JSON. It allocates
//! addresses from the node's pod CIDRs, makes the veth pair, and lets the pod's traffic flow only once the agent has
//! attached the policy programs.

mod agent;
mod attachment;
mod commands;
mod config;
mod error;
mod lease;
mod names;
mod request;
mod result;
mod sysctl;

use std::io::Read;
use std::process::ExitCode;

use error::Error;

fn main() -> ExitCode {
    let outcome = read_input().and_then(|input| commands::run(&request::Environment::of_process(), &input));
    let (output, code) = match outcome {
        Ok(output) => (output, ExitCode::SUCCESS),
        Err(error) => (Some(error.to_json()), ExitCode::FAILURE),
    };
    if let Some(output) = output {
        println!("{output}");
    }
    code
}

fn read_input() -> Result<String, Error> {
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input).map_err(|cause| Error::ReadConfig { cause })?;
    Ok(input)
}
