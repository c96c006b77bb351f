//! The messages of `socksd::wire`: each decoder beside an encoder that is written here.

use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use socksd::wire::ident::{ANSWER_MAX, Answer};
use socksd::wire::proxy::{Header, V1_MAX, V2_MAX};
use socksd::wire::socks4::Cd;
use socksd::wire::socks5::{Method, Rep};
use socksd::wire::udp::{Frag, HEADER_MAX};
use socksd::wire::{
    DecodeError, Destination, Reader, Request, STRING_MAX, Version, ident as ident_wire,
    proxy as proxy_wire, put_address, socks4 as socks4_wire, socks5 as socks5_wire,
    udp as udp_wire, userpass as userpass_wire,
};

/// The message at the front of `octets` with its own octets, if there is a whole one. Asserts what
/// holds of any message: it ends by `max` octets, each strict prefix of it is incomplete, what
/// follows it changes nothing, and more octets do not mend a wrong one.
fn message<T: Debug + PartialEq>(
    octets: &[u8],
    max: usize,
    decode: impl Fn(&mut Reader<'_>) -> Result<T, DecodeError>,
) -> Option<(T, &[u8])> {
    let decode = |octets: &[u8]| {
        let mut r = Reader::new(octets);
        let result = decode(&mut r);
        assert_eq!(r.consumed() + r.rest().len(), octets.len());
        (result, r.consumed())
    };
    let prefix = |len: usize| decode(&octets[..len]).0;
    let more = |octets: &[u8]| [octets, b"\0\r\n"].concat();
    match decode(octets) {
        (Ok(message), consumed) => {
            assert!(consumed <= max);
            for len in 0..consumed {
                assert_eq!(prefix(len), Err(DecodeError::Incomplete), "{len} octets");
            }
            let (own, _) = octets.split_at(consumed);
            assert_eq!(decode(own), (Ok(message), consumed));
            let (message, again) = decode(&more(own));
            assert_eq!(again, consumed);
            Some((message.unwrap(), own))
        }
        (Err(DecodeError::Incomplete), _) => {
            assert!(octets.len() < max, "incomplete with {} octets", octets.len());
            None
        }
        (Err(wrong), _) => {
            for len in 0..octets.len().min(max) {
                let known = [Err(DecodeError::Incomplete), Err(wrong)];
                assert!(known.contains(&prefix(len)), "{len} octets");
            }
            assert_eq!(decode(&more(octets)).0, Err(wrong));
            None
        }
    }
}

fn assert_canonical(addr: SocketAddr) {
    assert_eq!(addr.ip(), addr.ip().to_canonical());
}

/// Asserts what holds of the destination of any message, and encodes it as SOCKS 5 does.
fn put_destination(dst: &Destination, out: &mut Vec<u8>) {
    match dst {
        Destination::Address(addr) => {
            assert_canonical(*addr);
            put_address(*addr, out);
        }
        Destination::Name(name, port) => {
            let text = str::from_utf8(name).unwrap_or_default();
            assert!(text.parse::<IpAddr>().is_err(), "{text} is an address");
            assert_eq!(dst.port(), *port);
            out.extend([socksd::wire::ATYP_DOMAINNAME, u8::try_from(name.len()).unwrap()]);
            out.extend(name);
            out.extend(port.to_be_bytes());
        }
    }
}

/// Requests of SOCKS 4 and 4A, and the replies to them.
pub fn socks4(octets: &[u8]) {
    let max = 8 + 2 * (STRING_MAX + 1);
    for allow_4a in [true, false] {
        let decode = |r: &mut Reader<'_>| socks4_wire::decode_request(r, allow_4a);
        let Some((request, own)) = message(octets, max, decode) else { continue };
        assert!(request.userid.len() <= STRING_MAX);
        assert!(allow_4a || request.version == Version::V4);
        let encoded = request4(&request);
        match request.version {
            Version::V4 => assert_eq!(encoded, own),
            // The last octet of DSTIP and the spelling of an address may be others.
            _ => {
                assert!(encoded.len() <= max);
                assert_eq!(message(&encoded, max, decode).unwrap().0, request);
            }
        }
        if let Destination::Address(addr) = request.dst {
            let reply = socks4_wire::encode_reply(Cd(request.command.0), &request.dst);
            assert_eq!(reply.len(), 8);
            assert_eq!(reply[..2], [0, request.command.0]);
            assert_eq!(reply[2..4], addr.port().to_be_bytes());
            let ip = Ipv4Addr::new(reply[4], reply[5], reply[6], reply[7]);
            assert_eq!(ip, if let IpAddr::V4(ip) = addr.ip() { ip } else { Ipv4Addr::UNSPECIFIED });
        }
    }
}

fn request4(request: &Request) -> Vec<u8> {
    let (ip, name) = match (&request.dst, request.version) {
        (Destination::Address(addr), Version::V4) => (addr.ip().to_string(), None),
        (Destination::Address(addr), _) => ("0.0.0.1".into(), Some(addr.ip().to_string().into())),
        (Destination::Name(name, _), _) => ("0.0.0.1".into(), Some(name.clone())),
    };
    let mut out = vec![socks4_wire::VN, request.command.0];
    out.extend(request.dst.port().to_be_bytes());
    out.extend(ip.parse::<Ipv4Addr>().expect("SOCKS 4 has addresses of IPv4 only").octets());
    out.extend(&request.userid);
    out.push(0);
    if let Some(name) = name {
        assert!(name.len() <= STRING_MAX);
        out.extend(name);
        out.push(0);
    }
    out
}

/// Greetings of SOCKS 5.
pub fn socks5_greeting(octets: &[u8]) {
    let found = message(octets, 2 + STRING_MAX, socks5_wire::decode_greeting);
    let Some((methods, own)) = found else { return };
    let mut encoded = vec![socks5_wire::VER, u8::try_from(methods.len()).unwrap()];
    encoded.extend(methods.iter().map(|method| method.0));
    assert_eq!(encoded, own);
    for Method(code) in methods {
        assert_eq!(socks5_wire::encode_selection(Method(code)), [socks5_wire::VER, code]);
    }
}

/// Requests of SOCKS 5, and the replies to them.
pub fn socks5_request(octets: &[u8]) {
    let max = 3 + 2 + STRING_MAX + 2;
    let decode = socks5_wire::decode_request;
    let Some((request, own)) = message(octets, max, decode) else { return };
    assert_eq!((request.version, &request.userid[..]), (Version::V5, &b""[..]));
    let mut encoded = vec![socks5_wire::VER, request.command.0, own[2]];
    put_destination(&request.dst, &mut encoded);
    if matches!(request.dst, Destination::Name(..)) {
        assert_eq!(encoded, own);
    }
    assert_eq!(message(&encoded, max, decode).unwrap().0, request);
    let reply = socks5_wire::encode_reply(Rep(request.command.0), &request.dst);
    assert_eq!(reply[..3], [socks5_wire::VER, request.command.0, 0]);
    let mut r = Reader::new(&reply[3..]);
    assert_eq!(r.destination(), Ok(request.dst));
    assert_eq!(r.rest(), b"");
}

/// Requests of user name and password.
pub fn userpass(octets: &[u8]) {
    // Credentials cannot be compared or shown, on purpose.
    let decode = |r: &mut Reader<'_>| {
        userpass_wire::decode_request(r).map(|c| (c.uname, c.passwd.expose().to_vec()))
    };
    let max = 3 + 2 * STRING_MAX;
    let Some(((uname, passwd), own)) = message(octets, max, decode) else { return };
    let mut encoded = vec![userpass_wire::VER];
    for field in [uname, passwd] {
        encoded.push(u8::try_from(field.len()).unwrap());
        encoded.extend(field);
    }
    assert_eq!(encoded, own);
}

/// Datagrams with their headers.
pub fn udp(octets: &[u8]) {
    let decode = |r: &mut Reader<'_>| {
        let datagram = udp_wire::decode(r.rest())?;
        r.take(r.rest().len() - datagram.data.len())?;
        assert_eq!(r.rest(), datagram.data);
        Ok((datagram.frag, datagram.dst))
    };
    let max = 3 + 2 + STRING_MAX + 2;
    let Some(((frag, dst), own)) = message(octets, max, decode) else { return };
    assert_eq!(frag.0, frag.position() | if frag.is_last() { 0x80 } else { 0 });
    let mut encoded = vec![0, 0, frag.0];
    put_destination(&dst, &mut encoded);
    if matches!(dst, Destination::Name(..)) {
        assert_eq!(encoded, own);
    }
    assert_eq!(message(&encoded, max, decode).unwrap().0, (frag, dst.clone()));
    if let Destination::Address(addr) = dst {
        let mut header = Vec::new();
        udp_wire::encode_header(addr, &mut header);
        assert!(header.len() <= HEADER_MAX);
        assert_eq!(message(&header, max, decode).unwrap().0, (Frag::STANDALONE, dst));
    }
}

/// PROXY headers of both versions.
pub fn proxy(octets: &[u8]) {
    let decode = proxy_wire::decode;
    let max = if octets.first() == Some(&b'P') { V1_MAX } else { V2_MAX };
    let Some((header, _)) = message(octets, max, decode) else { return };
    if let Header::Proxied { client, server } = header {
        assert_canonical(client);
        assert_canonical(server);
    }
    assert_eq!(message(&proxy2(header), V2_MAX, decode).unwrap().0, header);
    if header != Header::Local {
        assert_eq!(message(&proxy1(header), V1_MAX, decode).unwrap().0, header);
    }
}

fn proxy1(header: Header) -> Vec<u8> {
    let Header::Proxied { client, server } = header else { return b"PROXY UNKNOWN\r\n".into() };
    let (family, [source, destination]) = match [client.ip(), server.ip()] {
        [IpAddr::V4(source), IpAddr::V4(destination)] => {
            ("TCP4", [source.to_string(), destination.to_string()])
        }
        ips => ("TCP6", ips.map(|ip| mapped(ip).to_string())),
    };
    let (from, to) = (client.port(), server.port());
    format!("PROXY {family} {source} {destination} {from} {to}\r\n").into()
}

fn proxy2(header: Header) -> Vec<u8> {
    let mut addresses = Vec::new();
    let (command, family) = match header {
        Header::Local => (0x20, 0x00),
        Header::Unknown => (0x21, 0x00),
        Header::Proxied { client, server } => {
            let family = match [client.ip(), server.ip()] {
                [IpAddr::V4(source), IpAddr::V4(destination)] => {
                    addresses.extend([source.octets(), destination.octets()].as_flattened());
                    0x11
                }
                ips => {
                    addresses.extend(ips.map(|ip| mapped(ip).octets()).as_flattened());
                    0x21
                }
            };
            addresses.extend(client.port().to_be_bytes());
            addresses.extend(server.port().to_be_bytes());
            (0x21, family)
        }
    };
    let len = u16::try_from(addresses.len()).unwrap().to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &len, &addresses].concat()
}

/// The address as one of IPv6.
fn mapped(ip: IpAddr) -> std::net::Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// Answers of the Identification Protocol about the ports of RFC 1413's own example.
pub fn ident(octets: &[u8]) {
    let (client, server) = (6193, 23);
    assert_eq!(ident_wire::encode_query(client, server), b"6193,23\r\n");
    let decode = |r: &mut Reader<'_>| {
        let answer = ident_wire::decode_answer(r.rest(), client, server)?;
        let line = r.rest().iter().position(|&octet| octet == b'\n');
        r.take(line.map_or(ANSWER_MAX, |len| len + 1).min(ANSWER_MAX))?;
        Ok(answer)
    };
    let Some((answer, own)) = message(octets, ANSWER_MAX, decode) else { return };
    let again = match &answer {
        Answer::UserId(id) => {
            assert!(!id.is_empty() && !id.iter().any(|octet| b"\0\r\n".contains(octet)));
            assert!(!id.starts_with(b" ") && !id.starts_with(b"\t"));
            [b"6193,23:USERID::", &id[..], b"\n"].concat()
        }
        Answer::Error(word) => {
            assert!(!word.contains(&b'\n'));
            // One that is part of the word is not the end of line.
            let end: &[u8] = if word.ends_with(b"\r") { b"\r\n" } else { b"\n" };
            [b":ERROR:", &word[..], end].concat()
        }
        Answer::Invalid(reason) => {
            assert!(reason.len() < 100);
            return;
        }
    };
    // An error without a type may lack its colon.
    assert!(again.len() <= own.len() + 1);
    assert_eq!(message(&again, ANSWER_MAX, decode).unwrap().0, answer);
}
