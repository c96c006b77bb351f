//! As much of HTTP/1.1 (RFC 9112) as it takes to be asked for a page: heads of requests from octets,
//! responses to octets, without a socket. Bodies of requests are not read.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Octets the head of a request may have.
pub const HEAD_MAX: usize = 4_096;

/// A response, after which the connection ends.
pub struct Response {
    /// Code and reason.
    pub status: &'static str,
    /// The media type of the body.
    pub content: &'static str,
    /// The body.
    pub body: String,
}

impl Response {
    /// A line of text.
    pub fn plain(status: &'static str, text: &str) -> Self {
        Self { status, content: "text/plain; charset=utf-8", body: format!("{text}\n") }
    }

    /// The octets, without the body for HEAD. Nothing may be kept, shown in another page, run, or
    /// fetched for it.
    pub fn encode(&self, with_body: bool) -> Vec<u8> {
        let Self { status, content, body } = self;
        let len = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\n\
             Content-Type: {content}\r\n\
             Content-Length: {len}\r\n\
             Connection: close\r\n\
             Allow: GET, HEAD\r\n\
             Cache-Control: no-store\r\n\
             Content-Security-Policy: default-src 'none'; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'\r\n\
             Cross-Origin-Resource-Policy: same-origin\r\n\
             Referrer-Policy: no-referrer\r\n\
             X-Content-Type-Options: nosniff\r\n\r\n"
        );
        (head + if with_body { body } else { "" }).into_bytes()
    }
}

/// Whether these octets hold a whole head. Lines may end with LF alone, RFC 9112 section 2.2.
pub fn is_whole(head: &[u8]) -> bool {
    head.windows(2).any(|end| end == b"\n\n") || head.windows(3).any(|end| end == b"\n\r\n")
}

/// The path a request is for. Unless it may come for `any_host`, that must be an address or
/// localhost: a name could be one that a web page of a stranger has led here, to have the browser of
/// somebody read what the stranger cannot (DNS rebinding, CVE-2007-4174).
///
/// # Errors
/// The response to any other request.
pub fn path(head: &[u8], any_host: bool) -> Result<&str, Response> {
    if !is_whole(head) {
        let status = "431 Request Header Fields Too Large";
        return Err(Response::plain(status, "the head may have 4096 octets"));
    }
    let bad = || Response::plain("400 Bad Request", "expected a request of HTTP/1.0 or HTTP/1.1");
    let text = str::from_utf8(head).map_err(|_| bad())?;
    let mut lines = text.lines().take_while(|line| !line.is_empty());
    let request: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, version @ ("HTTP/1.0" | "HTTP/1.1")] = request[..] else {
        return Err(bad());
    };
    let mut hosts = Vec::new();
    for line in lines {
        let (name, value) =
            line.split_once(':').filter(|(name, _)| is_token(name)).ok_or_else(bad)?;
        if value.contains(|c: char| c.is_control() && c != '\t') {
            return Err(bad());
        }
        if name.eq_ignore_ascii_case("host") {
            hosts.push(value.trim());
        }
    }
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    // A carriage return alone, for instance, is blank space to some and nothing to others.
    let is_target = path.starts_with('/') && target.bytes().all(|octet| octet.is_ascii_graphic());
    match hosts[..] {
        _ if !is_token(method) || !is_target => Err(bad()),
        _ if method != "GET" && method != "HEAD" => {
            Err(Response::plain("405 Method Not Allowed", "there are GET and HEAD"))
        }
        [] if version == "HTTP/1.0" => Ok(path),
        [host] if any_host || is_address(host) => Ok(path),
        [_] => {
            let text = "Host must be an address or localhost";
            Err(Response::plain("421 Misdirected Request", text))
        }
        _ => Err(bad()),
    }
}

/// Whether this is a token, RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    let is_part = |octet: u8| octet.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&octet);
    !text.is_empty() && text.bytes().all(is_part)
}

/// Whether `host`, perhaps with a port, is no name that a stranger can have.
fn is_address(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port),
        _ => (host, ""),
    };
    let v6 = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    port.bytes().all(|octet| octet.is_ascii_digit())
        && (name.eq_ignore_ascii_case("localhost")
            || name.parse::<Ipv4Addr>().is_ok()
            || v6.is_some_and(|v6| v6.parse::<Ipv6Addr>().is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_no_names_of_strangers() {
        for host in ["localhost", "LocalHost:80", "127.0.0.1", "127.0.0.1:9", "[::1]", "[::1]:9"] {
            assert!(is_address(host), "{host}");
        }
        for host in [
            "",
            ":80",
            "example.org",
            "localhost.example.org",
            "127.0.0.1.example.org",
            "localhost:80.example.org",
            "::1",
            "[::1].example.org",
            "[localhost]",
            "127.1",
            "2130706433",
            "user@127.0.0.1",
        ] {
            assert!(!is_address(host), "{host}");
        }
    }

    #[test]
    fn a_target_is_of_printing_ascii_characters() {
        for target in ["/a\rb", "/\t", "/\x0c", "/\0", "/\x7f", "/?\r", "/\u{e9}", "/\u{a0}"] {
            for end in ["\n", "\r\n"] {
                let head = format!("GET {target} HTTP/1.0{end}{end}");
                let status = path(head.as_bytes(), true).err().map(|response| response.status);
                assert_eq!(status, Some("400 Bad Request"), "{target:?}");
            }
        }
    }

    #[test]
    fn every_strict_prefix_of_a_head_is_not_whole() {
        for head in [&b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n"[..], b"GET / HTTP/1.0\n\n"] {
            assert!(is_whole(head));
            for len in 0..head.len() {
                assert!(!is_whole(&head[..len]), "{len}");
            }
            assert_eq!(path(head, false).ok(), Some("/"));
        }
    }
}
