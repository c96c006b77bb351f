//! The part of HTTP/1.1 (RFC 9112) that serves a page: heads of requests from octets, responses to
//! octets, without a socket. Bodies of requests are not read.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Longest head of a request, in octets.
pub const HEAD_MAX: usize = 4_096;

/// A response, the last on its connection.
pub struct Response {
    /// The status code with its reason phrase.
    pub status: &'static str,
    /// The media type of the body.
    pub content: &'static str,
    /// The body.
    pub body: String,
}

impl Response {
    /// A response of one line of text.
    pub fn plain(status: &'static str, text: &str) -> Self {
        Self { status, content: "text/plain; charset=utf-8", body: format!("{text}\n") }
    }

    /// Encodes the response, without the body for HEAD. Its fields forbid a browser to store it, to
    /// show it in another page, and to run or fetch anything for it.
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

/// Whether `head` is complete. Lines may end with LF alone (RFC 9112 section 2.2).
pub fn is_whole(head: &[u8]) -> bool {
    head.windows(2).any(|end| end == b"\n\n") || head.windows(3).any(|end| end == b"\n\r\n")
}

/// The path of a request. Without `any_host`, its host must be an address or localhost, to defeat
/// DNS rebinding (CVE-2007-4174): else a web page could read the metrics through the browser of its
/// reader, by a name that resolves to this server.
///
/// # Errors
/// The response to a bad request.
pub fn path(head: &[u8], any_host: bool) -> Result<&str, Response> {
    if !is_whole(head) {
        let status = "431 Request Header Fields Too Large";
        return Err(Response::plain(status, "the head is longer than 4096 bytes"));
    }
    let bad = || Response::plain("400 Bad Request", "expected an HTTP/1.0 or HTTP/1.1 request");
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
            Err(Response::plain("405 Method Not Allowed", "expected GET or HEAD"))
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

/// Whether `text` is a token (RFC 9110 section 5.6.2).
fn is_token(text: &str) -> bool {
    let is_part = |octet: u8| octet.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&octet);
    !text.is_empty() && text.bytes().all(is_part)
}

/// Whether `host`, perhaps with a port, is an address or localhost.
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
    fn only_addresses_and_localhost_are_accepted_as_host() {
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
    fn a_strict_prefix_of_a_head_is_never_complete() {
        for head in [&b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n"[..], b"GET / HTTP/1.0\n\n"] {
            assert!(is_whole(head));
            for len in 0..head.len() {
                assert!(!is_whole(&head[..len]), "{len}");
            }
            assert_eq!(path(head, false).ok(), Some("/"));
        }
    }
}
