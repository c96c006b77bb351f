//! The memory that a session costs. A server's part in shared pages counts too, and depends on how
//! many servers run: this one runs alone.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;

use crate::common::{Server, read, through};

/// The value that a file of the server's in /proc has behind `key`.
fn proc(server: &Server, file: &str, key: &str) -> usize {
    let text = fs::read_to_string(format!("/proc/{}/{file}", server.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Threads, mappings and KiB of memory of a server.
fn has(server: &Server) -> [usize; 3] {
    let maps = fs::read_to_string(format!("/proc/{}/maps", server.pid())).unwrap();
    [proc(server, "status", "Threads:"), maps.lines().count(), proc(server, "smaps_rollup", "Pss:")]
}

/// Sessions to average over that stand, and the most memory one of them may take, in KiB; less
/// where the compiler has optimised.
const MORE: usize = 100;
const KIB: usize = 32;

#[test]
fn a_session_that_stands_takes_two_threads_four_mappings_and_little_memory() {
    let _alone = crate::alone();
    let server = Server::open(&[]);
    let stand = |count| -> Vec<(TcpStream, TcpStream)> {
        let sessions = (0..count).map(|_| {
            let (mut client, mut target) = through(&server);
            // Too many for one thread.
            for _ in 0..10 {
                client.write_all(b"?").unwrap();
                read(&mut target, 1);
                target.write_all(b"!").unwrap();
                read(&mut client, 1);
            }
            (client, target)
        });
        sessions.collect()
    };
    // With the first ones comes what all share, such as the arenas of malloc(3).
    let _first = stand(50);
    let [threads, maps, kib] = has(&server);
    let _more = stand(MORE);
    let more = has(&server);
    // Both stacks, each with its guard; an arena may grow.
    let [most_maps, most_kib] = [maps + 4 * MORE + MORE / 10, kib + KIB * MORE];
    assert_eq!(more[0], threads + 2 * MORE);
    assert!(more[1] <= most_maps, "{maps} mappings, then {} and not {most_maps}", more[1]);
    assert!(more[2] <= most_kib, "{kib} KiB, then {} and not {most_kib}", more[2]);
}
