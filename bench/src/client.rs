//! The tight loop that connects. It runs inside a namespace and is told over its standard input what to do, so that
//! loops in several namespaces take turns without being started anew.
use crate::process::{Owned, owned};
use anyhow::{Context, Result, bail};
use socket2::{Domain, Socket, Type};
use std::{
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, SocketAddrV4},
    process::{ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const LOOK: Duration = Duration::from_millis(5);
const ATTEMPT: Duration = Duration::from_millis(100);

/// A loop in a namespace.
pub struct Client {
    _process: Owned,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Client {
    /// `command` has the namespace; the program in it must be this one.
    pub fn start(mut command: Command) -> Result<Self> {
        command.arg("connect").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = owned(command)?;
        let orders = process.0.stdin.take().context("the standard input is a pipe")?;
        let answers = process.0.stdout.take().context("the standard output is a pipe")?;
        Ok(Self { _process: process, orders, answers: BufReader::new(answers) })
    }

    /// Nanoseconds that each connect() took.
    pub fn connect(&mut self, to: SocketAddrV4, times: usize) -> Result<Vec<u64>> {
        self.ask(&format!("connect {to} {times}"))
    }

    /// Until a connection succeeds.
    pub fn wait(&mut self, to: SocketAddrV4, patience: Duration) -> Result<()> {
        self.ask(&format!("wait {to} {}", patience.as_secs())).map(drop)
    }

    fn ask(&mut self, order: &str) -> Result<Vec<u64>> {
        writeln!(self.orders, "{order}")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.is_empty() {
            bail!("`{order}` failed in the namespace");
        }
        Ok(serde_json::from_str(&line)?)
    }
}

/// The loop itself: obeys until its standard input ends.
pub fn obey() -> Result<()> {
    for line in io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let [verb, to, number] = words[..] else { bail!("want VERB ADDRESS NUMBER, not {line:?}") };
        let (to, number): (SocketAddr, u64) = (to.parse()?, number.parse()?);
        let samples = match verb {
            "connect" => (0..number).map(|_| timed(to)).collect::<io::Result<Vec<u64>>>(),
            _ => until_connected(to, Duration::from_secs(number)),
        };
        let samples = samples.with_context(|| format!("cannot connect to {to}"))?;
        println!("{}", serde_json::to_string(&samples)?);
    }
    Ok(())
}

/// The connection is reset at once: nothing lingers, and the port is free again.
fn timed(to: SocketAddr) -> io::Result<u64> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_linger(Some(Duration::ZERO))?;
    let to = to.into();
    let begun = Instant::now();
    socket.connect(&to)?;
    Ok(begun.elapsed().as_nanos() as u64)
}

fn until_connected(to: SocketAddr, patience: Duration) -> io::Result<Vec<u64>> {
    let begun = Instant::now();
    loop {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_linger(Some(Duration::ZERO))?;
        match socket.connect_timeout(&to.into(), ATTEMPT) {
            Ok(()) => return Ok(Vec::new()),
            Err(error) if begun.elapsed() > patience => return Err(error),
            Err(_) => thread::sleep(LOOK),
        }
    }
}
