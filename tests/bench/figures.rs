//! The figures: what is measured of a server, and how.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use socksd::dial;
use socksd::sys::{self, PollFd};
use socksd::wire::{self, udp};

use crate::servers::Running;
use crate::targets::{BLOCK, PING, SOON, Targets, WORDS, order, receive_blocks, send_blocks};

/// Sessions at once.
const CLIENTS: u8 = 16;
/// Streams at once, where it is not one.
const STREAMS: usize = 8;
/// Sessions that are open and idle.
const IDLE: u32 = 1_000;
/// Datagrams under way at once.
const WINDOW: u32 = 32;

/// One number of a figure.
pub struct Metric {
    /// What it is, with its unit.
    pub label: &'static str,
    /// Whether more of it is better.
    pub more_is_better: bool,
    /// Whether the chart shows it.
    pub in_chart: bool,
}

const fn more(label: &'static str) -> Metric {
    Metric { label, more_is_better: true, in_chart: false }
}

const fn less(label: &'static str) -> Metric {
    Metric { label, more_is_better: false, in_chart: false }
}

impl Metric {
    const fn drawn(mut self) -> Self {
        self.in_chart = true;
        self
    }
}

/// What is measured at once; its numbers have the order of its metrics.
pub struct Figure {
    /// What `--only` calls it.
    pub name: &'static str,
    pub metrics: &'static [Metric],
    pub measure: fn(&Bench) -> io::Result<Vec<Option<f64>>>,
}

pub const FIGURES: [Figure; 7] = [
    Figure {
        name: "sessions",
        metrics: &[
            more("sessions/s, 16 at once").drawn(),
            less("CPU µs per session").drawn(),
            less("session p50 ms"),
            less("session p99 ms"),
        ],
        measure: sessions,
    },
    Figure {
        name: "stream1",
        metrics: &[
            more("1 stream down GiB/s").drawn(),
            less("1 stream down CPU s/GiB").drawn(),
            more("1 stream up GiB/s"),
            less("1 stream up CPU s/GiB"),
        ],
        measure: stream1,
    },
    Figure {
        name: "stream8",
        metrics: &[
            more("8 streams both ways GiB/s").drawn(),
            less("8 streams both ways CPU s/GiB").drawn(),
        ],
        measure: stream8,
    },
    Figure {
        name: "rtt",
        metrics: &[
            less("round trip of 64 bytes p50 µs").drawn(),
            less("CPU µs per round trip").drawn(),
            less("round trip p99 µs"),
        ],
        measure: rtt,
    },
    Figure {
        name: "udp",
        metrics: &[
            more("UDP of 512 bytes, echoes/s"),
            less("CPU µs per echo of 512"),
            more("UDP of 1,400 bytes, echoes/s").drawn(),
            less("CPU µs per echo of 1,400").drawn(),
            less("lost of 1,000 datagrams"),
        ],
        measure: datagrams,
    },
    Figure {
        name: "idle",
        metrics: &[
            less("set-up of a session p50 µs"),
            less("PSS KiB per idle session").drawn(),
            less("threads per idle session"),
            less("descriptors per idle session"),
            less("PSS KiB without sessions"),
        ],
        measure: idle,
    },
    Figure {
        name: "first",
        metrics: &[less("first byte of the target p50 µs").drawn(), less("first byte p99 µs")],
        measure: first,
    },
];

/// A server to be measured, and what with.
pub struct Bench<'a> {
    pub server: &'a Running,
    pub targets: &'a Targets,
    /// How long to measure.
    pub time: Duration,
}

impl Bench<'_> {
    /// Connects to a target through the server, from an address of loopback.
    fn open(&self, target: SocketAddr, from: Ipv4Addr) -> io::Result<TcpStream> {
        let mut stream = connect(self.server.addr.unwrap_or(target), from)?;
        if self.server.addr.is_some() {
            request(&mut stream, 1, target)?;
        }
        Ok(stream)
    }

    /// A connection to the target that works, and what it is to do.
    fn order(&self, order: u8) -> io::Result<TcpStream> {
        let mut stream = self.open(self.targets.work, Ipv4Addr::LOCALHOST)?;
        stream.write_all(&[order])?;
        Ok(stream)
    }

    /// Runs `work`; returns what it returns, how long it took and the CPU time of the server.
    fn measured<T>(
        &self,
        work: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<(T, f64, Option<f64>)> {
        let before = self.server.cpu();
        let start = Instant::now();
        let done = work()?;
        let took = start.elapsed();
        // Sessions come to their end.
        thread::sleep(Duration::from_millis(50));
        let used =
            self.server.cpu().zip(before).and_then(|(after, before)| after.checked_sub(before));
        Ok((done, took.as_secs_f64(), used.map(|used| used.as_secs_f64())))
    }

    /// As the order for a number of milliseconds has it.
    fn millis(&self) -> [u8; 4] {
        u32::try_from(self.time.as_millis()).unwrap().to_be_bytes()
    }
}

fn connect(addr: SocketAddr, from: Ipv4Addr) -> io::Result<TcpStream> {
    // std cannot bind before it connects; the library can.
    let target = dial::Target { addr, source: Some(from.into()) };
    let stream = TcpStream::from(dial::start(target)?);
    sys::poll(&mut [PollFd::new(&stream, sys::POLLOUT)], Some(SOON))?;
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(SOON))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Shakes hands as a client without a password; returns BND.
fn request(stream: &mut TcpStream, cmd: u8, dst: SocketAddr) -> io::Result<SocketAddr> {
    let mut selection = [0; 2];
    stream.write_all(&[5, 1, 0])?;
    stream.read_exact(&mut selection)?;
    if selection != [5, 0] {
        return Err(io::Error::other(format!("it selects {selection:02x?}")));
    }
    let mut request = vec![5, cmd, 0];
    wire::put_address(dst, &mut request);
    stream.write_all(&request)?;
    let mut reply = [0; 10];
    stream.read_exact(&mut reply)?;
    match reply {
        [5, 0, _, 1, a, b, c, d, high, low] => {
            Ok(SocketAddr::from(([a, b, c, d], u16::from_be_bytes([high, low]))))
        }
        // The address does not count, but it has to be read.
        [5, 0, _, 4, ..] => {
            let mut rest = [0; 12];
            stream.read_exact(&mut rest)?;
            let port = u16::from_be_bytes([rest[10], rest[11]]);
            Ok(SocketAddr::from(([0, 0, 0, 0], port)))
        }
        _ => Err(io::Error::other(format!("it replies {reply:02x?}"))),
    }
}

/// Where a client of its own number comes from.
fn client_ip(client: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 1, client + 1)
}

fn sessions(bench: &Bench) -> io::Result<Vec<Option<f64>>> {
    let time = 2 * bench.time;
    let client = |number: u8| -> io::Result<Vec<Duration>> {
        let (until, from) = (Instant::now() + time, client_ip(number));
        // Each client has targets of its own, in turn.
        let own = bench.targets.octet.iter().skip(usize::from(number)).step_by(CLIENTS.into());
        let mut own = own.cycle();
        let mut took = Vec::new();
        while Instant::now() < until {
            let start = Instant::now();
            let mut stream = bench.open(*own.next().unwrap(), from)?;
            let mut octet = [b'?'];
            stream.write_all(&octet)?;
            stream.read_exact(&mut octet)?;
            drop(stream);
            took.push(start.elapsed());
        }
        Ok(took)
    };
    let (mut took, seconds, cpu) = bench.measured(|| {
        thread::scope(|scope| {
            let clients: Vec<_> =
                (0..CLIENTS).map(|number| scope.spawn(move || client(number))).collect();
            let mut all = Vec::new();
            for client in clients {
                all.extend(client.join().unwrap()?);
            }
            Ok(all)
        })
    })?;
    let count = float(took.len());
    Ok(vec![
        Some(count / seconds),
        cpu.map(|cpu| cpu * 1e6 / count),
        Some(percentile(&mut took, 50) * 1e3),
        Some(percentile(&mut took, 99) * 1e3),
    ])
}

fn stream1(bench: &Bench) -> io::Result<Vec<Option<f64>>> {
    let mut down = bench.order(order::DOWN)?;
    let (blocks, seconds, cpu) = bench.measured(|| {
        down.write_all(&bench.millis())?;
        receive_blocks(&mut down)
    })?;
    drop(down);
    let mut numbers = throughput(blocks, seconds, cpu);
    let mut up = bench.order(order::UP)?;
    let (blocks, seconds, cpu) = bench.measured(|| {
        let until = Instant::now() + bench.time;
        let blocks = send_blocks(&mut up, || Instant::now() >= until)?;
        up.read_exact(&mut [0])?;
        Ok(blocks)
    })?;
    numbers.extend(throughput(blocks, seconds, cpu));
    Ok(numbers)
}

fn stream8(bench: &Bench) -> io::Result<Vec<Option<f64>>> {
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        streams.push(bench.order(order::BOTH)?);
    }
    let stream = |mut stream: TcpStream| -> io::Result<u32> {
        stream.write_all(&bench.millis())?;
        let (mut up, until) = (stream.try_clone()?, Instant::now() + bench.time);
        thread::scope(|scope| {
            let up = scope.spawn(move || send_blocks(&mut up, || Instant::now() >= until));
            let down = receive_blocks(&mut stream)?;
            Ok(down + up.join().unwrap()?)
        })
    };
    let (blocks, seconds, cpu) = bench.measured(|| {
        thread::scope(|scope| {
            let streams: Vec<_> =
                streams.into_iter().map(|each| scope.spawn(move || stream(each))).collect();
            streams.into_iter().map(|stream| stream.join().unwrap()).sum::<io::Result<u32>>()
        })
    })?;
    Ok(throughput(blocks, seconds, cpu))
}

fn throughput(blocks: u32, seconds: f64, cpu: Option<f64>) -> Vec<Option<f64>> {
    let gib = f64::from(blocks) / float((1 << 30) / BLOCK);
    vec![Some(gib / seconds), cpu.map(|cpu| cpu / gib)]
}

fn rtt(bench: &Bench) -> io::Result<Vec<Option<f64>>> {
    let time = 2 * bench.time;
    let mut stream = bench.order(order::PING)?;
    let (mut took, _, cpu) = bench.measured(|| {
        let until = Instant::now() + time;
        let (mut ping, mut took) = ([b'?'; PING], Vec::new());
        let mut start = Instant::now();
        while start < until {
            stream.write_all(&ping)?;
            stream.read_exact(&mut ping)?;
            let end = Instant::now();
            took.push(end - start);
            start = end;
        }
        Ok(took)
    })?;
    Ok(vec![
        Some(percentile(&mut took, 50) * 1e6),
        cpu.map(|cpu| cpu * 1e6 / float(took.len())),
        Some(percentile(&mut took, 99) * 1e6),
    ])
}

fn idle(bench: &Bench) -> io::Result<Vec<Option<f64>>> {
    let before = bench.server.held();
    let (mut open, mut took) = (Vec::new(), Vec::new());
    for _ in 0..IDLE {
        let start = Instant::now();
        let mut stream = bench.open(bench.targets.work, Ipv4Addr::LOCALHOST)?;
        took.push(start.elapsed());
        stream.write_all(&[order::HOLD])?;
        open.push(stream);
    }
    // A server may wait for more than a word to give a session all it is to have.
    for stream in &mut open {
        for _ in 0..WORDS {
            stream.write_all(b"?")?;
            stream.read_exact(&mut [0])?;
        }
    }
    thread::sleep(Duration::from_millis(100));
    let held = bench.server.held().zip(before);
    let each = |after: u32, before: u32| f64::from(after.saturating_sub(before)) / f64::from(IDLE);
    Ok(vec![
        Some(percentile(&mut took, 50) * 1e6),
        held.filter(|_| bench.server.is_ours()).map(|(after, before)| each(after.pss, before.pss)),
        held.map(|(after, before)| each(after.threads, before.threads)),
        held.map(|(after, before)| each(after.descriptors, before.descriptors)),
        before.filter(|_| bench.server.is_ours()).map(|before| before.pss.into()),
    ])
}

fn datagrams(bench: &Bench) -> io::Result<Vec<Option<f64>>> {
    let any = IpAddr::from(Ipv4Addr::LOCALHOST);
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut header = Vec::new();
    // The association lives as long as this connection.
    let mut control = None;
    let mut relay = bench.targets.udp;
    if let Some(server) = bench.server.addr {
        let mut stream = connect(server, Ipv4Addr::LOCALHOST)?;
        let own = socket.local_addr()?;
        let bnd = request(&mut stream, 3, own)?;
        let ip = if bnd.ip().is_unspecified() { server.ip() } else { bnd.ip() };
        relay = SocketAddr::new(ip, bnd.port());
        udp::encode_header(bench.targets.udp, &mut header);
        control = Some(stream);
    }
    socket.connect(relay)?;
    let (mut numbers, mut sent, mut lost) = (Vec::new(), 0, 0);
    for size in [512, 1_400] {
        let datagram = [&header[..], &vec![b'.'; size]].concat();
        let ((came, went), seconds, cpu) =
            bench.measured(|| echoes(&socket, &datagram, Instant::now() + bench.time))?;
        numbers
            .extend([Some(f64::from(came) / seconds), cpu.map(|cpu| cpu * 1e6 / f64::from(came))]);
        // What is still under way is neither lost nor of the next size.
        let mut late = 0;
        while socket.recv(&mut [0]).is_ok() {
            late += 1;
        }
        (sent, lost) = (sent + went, lost + went.saturating_sub(came + late));
    }
    numbers.push(Some(f64::from(lost) * 1e3 / f64::from(sent)));
    drop(control);
    Ok(numbers)
}

/// Keeps datagrams under way; returns how many have come back and how many were sent.
fn echoes(socket: &UdpSocket, datagram: &[u8], until: Instant) -> io::Result<(u32, u32)> {
    let mut buffer = [0; 2048];
    let (mut came, mut sent, mut room) = (0, 0, WINDOW);
    let mut heard = Instant::now();
    while Instant::now() < until {
        for _ in 0..room {
            socket.send(datagram)?;
            sent += 1;
        }
        room = match socket.recv(&mut buffer) {
            Ok(len) if len == datagram.len() => {
                (came, heard) = (came + 1, Instant::now());
                1
            }
            Ok(len) => return Err(io::Error::other(format!("{len} octets come back"))),
            // All that were under way are lost.
            Err(error) if error.kind() == ErrorKind::WouldBlock && heard.elapsed() < SOON => WINDOW,
            Err(error) => return Err(error),
        };
    }
    if came == 0 {
        return Err(io::Error::other("no datagram comes back"));
    }
    Ok((came, sent))
}

fn first(bench: &Bench) -> io::Result<Vec<Option<f64>>> {
    let until = Instant::now() + bench.time;
    let mut took = Vec::new();
    for target in bench.targets.first.iter().cycle() {
        let start = Instant::now();
        if start >= until {
            break;
        }
        bench.open(*target, Ipv4Addr::LOCALHOST)?.read_exact(&mut [0])?;
        took.push(start.elapsed());
    }
    Ok(vec![Some(percentile(&mut took, 50) * 1e6), Some(percentile(&mut took, 99) * 1e6)])
}

/// The time in seconds that so many of a hundred did not exceed.
fn percentile(times: &mut [Duration], of_hundred: usize) -> f64 {
    times.sort_unstable();
    times[(times.len() - 1) * of_hundred / 100].as_secs_f64()
}

fn float(count: usize) -> f64 {
    u32::try_from(count).unwrap().into()
}
