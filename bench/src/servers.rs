//! Who answers in the benchmarks: as little as can be, so that what stands before it is what is measured.
use anyhow::{Context, Result};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
};

const BODY: &str = "{\"id\":\"42\",\"name\":\"user 42\"}";
const HEAD: usize = 16 * 1024;

/// Takes connections and drops them, for ever.
pub fn listen(port: u16) -> Result<()> {
    bind(port)?.incoming().for_each(drop);
    Ok(())
}

/// Answers every request without a body, for ever.
pub fn serve(port: u16) -> Result<()> {
    for stream in bind(port)?.incoming().flatten() {
        // A client may break off at any time; that is its affair.
        thread::spawn(move || answer(stream).ok());
    }
    Ok(())
}

fn bind(port: u16) -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("cannot listen on port {port}"))
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let length = BODY.len();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{BODY}");
    let mut head = vec![0; HEAD];
    let mut length = 0;
    loop {
        let read = stream.read(&mut head[length..])?;
        if read == 0 {
            return Ok(());
        }
        length += read;
        if head[..length].ends_with(b"\r\n\r\n") {
            stream.write_all(answer.as_bytes())?;
            length = 0;
        }
    }
}
