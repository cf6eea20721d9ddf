//! Clients over TCP: lines, and HTTP as much as is needed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::drive::Answer;

const PATIENCE: Duration = Duration::from_secs(15);

/// A connection that is kept, or made at the next use.
pub(crate) struct Connection {
    port: u16,
    stream: Option<BufReader<TcpStream>>,
}

/// An answer over HTTP.
pub(crate) struct Page {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Connection {
    /// To this port of 127.0.0.1; connects at the first use.
    pub(crate) fn new(port: u16) -> Self {
        Self { port, stream: None }
    }

    /// Sends a line, reads one; both without their end.
    pub(crate) fn line(&mut self, asked: &str) -> Answer<String> {
        self.with(|stream| {
            stream.get_mut().write_all(format!("{asked}\n").as_bytes())?;
            read_line(stream)
        })
    }

    /// One more line of an answer.
    pub(crate) fn next_line(&mut self) -> Answer<String> {
        self.with(read_line)
    }

    /// Sends text as it is, reads a line, and as many bytes more as `more` finds in it.
    pub(crate) fn exchange(&mut self, asked: &str, more: fn(&str) -> usize) -> Answer<(String, Vec<u8>)> {
        self.with(|stream| {
            stream.get_mut().write_all(asked.as_bytes())?;
            let line = read_line(stream)?;
            let mut body = vec![0; more(&line)];
            stream.read_exact(&mut body)?;
            Ok((line, body))
        })
    }

    /// GET, or POST where there is a body; the connection is kept.
    pub(crate) fn http(&mut self, path: &str, body: Option<&str>) -> Answer<Page> {
        self.with(|stream| {
            let method = if body.is_some() { "POST" } else { "GET" };
            let body = body.unwrap_or("");
            let head = format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            stream.get_mut().write_all(format!("{head}{body}").as_bytes())?;
            read_page(stream)
        })
    }

    /// A connection on which something failed is not used again.
    fn with<T>(&mut self, work: impl FnOnce(&mut BufReader<TcpStream>) -> std::io::Result<T>) -> Answer<T> {
        let failed = |e: std::io::Error| format!("port {}: {e}", self.port);
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => connect(self.port).map_err(failed)?,
        };
        let done = work(&mut stream).map_err(failed)?;
        self.stream = Some(stream);
        Ok(done)
    }
}

fn connect(port: u16) -> std::io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

fn read_line(stream: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_string())
}

fn read_page(stream: &mut BufReader<TcpStream>) -> std::io::Result<Page> {
    let first = read_line(stream)?;
    let bad = || std::io::Error::other(format!("not HTTP: {first}"));
    let status = first.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(bad)?;
    let (mut length, mut chunked) = (0, false);
    loop {
        let line = read_line(stream)?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(text) = line.strip_prefix("content-length:") {
            length = text.trim().parse().map_err(|_| bad())?;
        }
        chunked |= line.strip_prefix("transfer-encoding:").is_some_and(|v| v.trim() == "chunked");
    }
    let mut body = Vec::new();
    if !chunked {
        body.resize(length, 0);
        stream.read_exact(&mut body)?;
        return Ok(Page { status, body });
    }
    loop {
        let size = usize::from_str_radix(&read_line(stream)?, 16).map_err(|_| bad())?;
        let start = body.len();
        body.resize(start + size, 0);
        stream.read_exact(&mut body[start..])?;
        read_line(stream)?;
        if size == 0 {
            return Ok(Page { status, body });
        }
    }
}
