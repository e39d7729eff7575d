//! A network in a box for the virtual address: three routers, a client and a stranger on one switch.
//!
//! [`run`] starts the test again in namespaces of its own and hands it a [`Lab`]. Nothing of it outlives the test. The
//! routers run keepalived or `pointsman-vip`; [`Meter`] is a client, [`Watch`] sees every address and every packet. Times
//! are those of one clock, in one process.
//!
//! Threads: each part that watches or serves has one; they end with the inner program, [`Meter`] with its value.

pub mod daemon;
pub mod keepalived;
pub mod meter;
pub mod names;
pub mod namespace;
pub mod netlink;
pub mod packet;
pub mod ready;
pub mod sandbox;
mod sys;
pub mod vip;
pub mod wait;
pub mod watch;

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::net::{SendFlags, send};
use serde_json::Value;

use crate::tools;

pub use daemon::Daemon;
pub use keepalived::Group;
pub use meter::{Answer, Gap, Meter};
pub use namespace::Namespace;
pub use netlink::Route;
pub use packet::{Forged, Mac, Packet};
pub use ready::{FakeProxy, Mood};
pub use sandbox::{enter, inside, is_inside, measure, run, run_for};
pub use vip::Vip;
pub use watch::{Change, Sent, Watch};

/// How many routers there are.
pub const HOSTS: usize = 3;
/// The client's port of the switch.
pub const CLIENT: usize = 3;
/// The stranger's.
pub const STRANGER: usize = 4;
/// The priorities of the routers.
pub const PRIORITIES: [u8; HOSTS] = [250, 150, 50];
/// What a start, a first election or a return may take.
pub const SOON: Duration = Duration::from_secs(15);

/// A client whose latest answer is older is cut off. Gaps are measured by [`Meter::gap`]; this is for a busy machine, too.
const RECENT: Duration = Duration::from_millis(200);

/// The IPv4 address that moves.
pub const VIRTUAL: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 110));
/// The IPv6 address that moves.
pub const VIRTUAL6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x110));
/// The link-local address that moves with it: keepalived wants one.
pub const VIRTUAL6_LINK: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x110));

const KEY: &str = "a key that the hosts of the lab share";

/// One of the switch's two bridges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where everybody is at first.
    Main,
    /// The other side of a partition.
    Other,
    /// Of no bridge: frames vanish, and nobody notices.
    Nowhere,
}

/// What runs on a host.
#[derive(Debug, Clone)]
pub enum Software {
    /// Debian's keepalived.
    Keepalived,
    /// `pointsman-vip`.
    Pointsman(Vip),
}

/// A host on the switch.
#[derive(Debug)]
pub struct Station {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its own Ethernet address.
    pub mac: Mac,
    route: Route,
    /// Of its `eth0`.
    interface: u32,
    /// Of its port of the switch.
    port: u32,
}

/// The network and what runs on it.
#[derive(Debug)]
pub struct Lab {
    directory: PathBuf,
    switch: Namespace,
    switch_route: Route,
    bridges: [u32; 2],
    stations: Vec<Station>,
    daemons: [Option<Daemon>; HOSTS],
    /// What has happened.
    pub watch: Watch,
    forger: OwnedFd,
}

impl Lab {
    /// Builds the network in the sandbox that we are in.
    pub(crate) fn build() -> Result<Self> {
        let directory = sandbox::place()?;
        let namespaces = directory.join("namespaces");
        fs::create_dir(&namespaces)?;
        let switch = Namespace::create("switch", &namespaces)?;
        switch.ip("link set lo up\n\
             link add main type bridge mcast_snooping 0 forward_delay 0\n\
             link add other type bridge mcast_snooping 0 forward_delay 0\n\
             link set main up\n\
             link set other up\n")?;
        let names = ["lb1", "lb2", "lb3", "client", "stranger"];
        let stations: Vec<Station> = names
            .iter()
            .enumerate()
            .map(|(number, name)| station(number, name, &namespaces, &switch))
            .collect::<Result<_>>()?;
        let routers: Vec<&Namespace> =
            stations.iter().take(HOSTS).map(|station| &station.namespace).collect();
        names::serve(&routers)?;
        let ports = stations.iter().map(|station| station.port).collect();
        let watch = Watch::start(&routers, &switch, ports)?;
        let bridges = [switch.index("main")?, switch.index("other")?];
        let switch_route = Route::open(&switch)?;
        let stranger = stations.get(STRANGER).context("no stranger")?;
        let forger = stranger.namespace.within(|| {
            let socket = sys::packet_socket()?;
            sys::bind(socket.as_fd(), stranger.interface)?;
            Ok(socket)
        })?;
        let daemons = [const { None }; HOSTS];
        Ok(Self { directory, switch, switch_route, bridges, stations, daemons, watch, forger })
    }

    /// Where files may be put; they vanish with the lab.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The namespace of the switch.
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// A host by its number: routers from 0, [`CLIENT`], [`STRANGER`].
    pub fn station(&self, number: usize) -> &Station {
        self.stations.get(number).unwrap_or_else(|| panic!("there is no station {number}"))
    }

    /// A host's own address of the family of `like`.
    pub fn address(number: usize, like: IpAddr) -> IpAddr {
        own_address(number, like.is_ipv6())
    }

    /// Starts a router.
    pub fn start(
        &mut self,
        host: usize,
        software: &Software,
        group: &Group,
        priorities: &[u8],
    ) -> Result<Instant> {
        let directory = self.host_directory(host)?;
        let ipv6 = group.addresses.first().is_some_and(|(address, _)| address.is_ipv6());
        let hosts: Vec<IpAddr> = (0..priorities.len()).map(|number| own_address(number, ipv6)).collect();
        match software {
            Software::Keepalived => {
                let priority = priorities.get(host).copied().context("no priority")?;
                self.start_keepalived(host, &keepalived::configuration(group, &hosts, host, priority)?)
            }
            Software::Pointsman(vip) => {
                fs::write(directory.join("vrrp.password"), group.password.as_deref().unwrap_or_default())?;
                self.start_pointsman(host, &vip.configuration(group, &hosts, host, priorities, &directory)?)
            }
        }
    }

    /// Starts all three, waits until the first holds the group's address and answers the client that this returns.
    pub fn start_all(&mut self, software: &[Software; HOSTS], group: &Group) -> Result<Meter> {
        for (host, software) in software.iter().enumerate() {
            self.start(host, software, group, &PRIORITIES)?;
        }
        let address = group.address().context("no address")?;
        self.wait_holder(0, address, SOON)?;
        let meter = self.meter(address)?;
        self.wait_quiet(0, &meter, SOON)?;
        Ok(meter)
    }

    /// Starts keepalived with a configuration of the test's own.
    pub fn start_keepalived(&mut self, host: usize, configuration: &str) -> Result<Instant> {
        let directory = self.host_directory(host)?;
        fs::write(directory.join("keepalived.conf"), configuration)?;
        let arguments = keepalived::arguments(&directory);
        self.launch(host, &keepalived::program()?, &arguments)
    }

    /// Starts `pointsman-vip` with a configuration of the test's own.
    pub fn start_pointsman(&mut self, host: usize, configuration: &str) -> Result<Instant> {
        self.write_pointsman(host, configuration)?;
        let program = vip::program();
        ensure!(
            program.is_file(),
            "{} does not exist: run `cargo build -p pointsman-vip`, or set POINTSMAN_VIP_BIN",
            program.display()
        );
        let arguments = ["run", "--config", "pointsman.toml"].map(str::to_owned);
        self.launch(host, &program, &arguments)
    }

    /// Writes the configuration of `pointsman-vip`, to be reloaded.
    pub fn write_pointsman(&self, host: usize, configuration: &str) -> Result<()> {
        let directory = self.host_directory(host)?;
        fs::write(directory.join("peers.key"), KEY)?;
        Ok(fs::write(directory.join("pointsman.toml"), configuration)?)
    }

    /// The configuration that `pointsman-vip` was last started with.
    pub fn read_pointsman(&self, host: usize) -> Result<String> {
        Ok(fs::read_to_string(self.host_directory(host)?.join("pointsman.toml"))?)
    }

    /// The directory of a host; made when it is first asked for.
    pub fn host_directory(&self, host: usize) -> Result<PathBuf> {
        let directory = self.directory.join(self.station(host).namespace.name());
        fs::create_dir_all(&directory)?;
        Ok(directory)
    }

    fn launch(&mut self, host: usize, program: &Path, arguments: &[String]) -> Result<Instant> {
        let directory = self.host_directory(host)?;
        let namespace = &self.station(host).namespace;
        let daemon = Daemon::start(namespace, &directory, program, arguments)?;
        let slot = self.daemons.get_mut(host).context("not a router")?;
        ensure!(slot.is_none(), "lb{} runs already", host + 1);
        *slot = Some(daemon);
        Ok(Instant::now())
    }

    /// The processes of a router.
    pub fn daemon(&mut self, host: usize) -> Result<&mut Daemon> {
        let daemon = self.daemons.get_mut(host).and_then(Option::as_mut);
        daemon.with_context(|| format!("nothing runs on lb{}", host + 1))
    }

    /// True when a router was started and not [`forgotten`](Lab::forget).
    pub fn runs(&self, host: usize) -> bool {
        self.daemons.get(host).is_some_and(Option::is_some)
    }

    /// SIGKILL to everything on a host, which can then be started anew.
    pub fn kill(&mut self, host: usize) -> Result<Instant> {
        let at = self.daemon(host)?.kill()?;
        self.forget(host);
        Ok(at)
    }

    /// SIGTERM; waits for the end, whose status must be success, and lets the host be started anew.
    pub fn stop(&mut self, host: usize) -> Result<Instant> {
        let daemon = self.daemon(host)?;
        let at = daemon.terminate()?;
        let status = daemon.wait_ended(SOON)?;
        ensure!(status.success(), "lb{}: {status}\n{}", host + 1, self.daemon(host)?.tail());
        self.forget(host);
        Ok(at)
    }

    /// Lets a host be started anew whose main process has ended.
    pub fn forget(&mut self, host: usize) {
        if let Some(slot) = self.daemons.get_mut(host) {
            *slot = None;
        }
    }

    /// Fails when a router that was started has ended.
    pub fn check_running(&mut self) -> Result<()> {
        self.daemons.iter_mut().flatten().try_for_each(Daemon::check_running)
    }

    /// `pointsman-vip COMMAND… --config` on a host: its standard output.
    pub fn command(&self, host: usize, words: &[&str]) -> Result<String> {
        let output =
            self.pointsman_command(host)?.args(words).args(["--config", "pointsman.toml"]).output()?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(
            output.status.success(),
            "pointsman-vip {words:?} on lb{}: {}\n{out}{err}",
            host + 1,
            output.status
        );
        Ok(out.into_owned())
    }

    /// `pointsman-vip` on a host, for ten seconds at most.
    pub fn pointsman_command(&self, host: usize) -> Result<Command> {
        let mut command = self.station(host).namespace.command(&tools::program("timeout")?)?;
        command.arg("10").arg(vip::program());
        command.current_dir(self.host_directory(host)?);
        Ok(command)
    }

    /// `pointsman-vip status --json`.
    pub fn status(&self, host: usize) -> Result<Value> {
        let text = self.command(host, &["status", "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// A client that connects to `address` every millisecond.
    pub fn meter(&self, address: IpAddr) -> Result<Meter> {
        Meter::start(&self.station(CLIENT).namespace, SocketAddr::from((address, names::PORT)))
    }

    /// A proxy on `host` that is nothing but its `/ready` and its socket.
    pub fn fake_proxy(&self, host: usize) -> Result<FakeProxy> {
        FakeProxy::start(&self.station(host).namespace, &self.host_directory(host)?.join("admin.sock"))
    }

    /// Moves a station to a side of the network; answers when.
    pub fn move_to(&self, number: usize, side: Side) -> Result<Instant> {
        let [main, other] = self.bridges;
        let bridge = match side {
            Side::Main => Some(main),
            Side::Other => Some(other),
            Side::Nowhere => None,
        };
        self.switch_route.set_master(self.station(number).port, bridge)
    }

    /// Sets a host's own interface up or down; answers when.
    pub fn set_link(&self, number: usize, up: bool) -> Result<Instant> {
        let station = self.station(number);
        station.route.set_up(station.interface, up)
    }

    /// Pulls a host's cable, or plugs it in; answers when.
    pub fn set_carrier(&self, number: usize, on: bool) -> Result<Instant> {
        self.switch_route.set_up(self.station(number).port, on)
    }

    /// Adds an address to a host, as somebody else would.
    pub fn add_address(&self, number: usize, address: IpAddr) -> Result<Instant> {
        let station = self.station(number);
        station.route.add_address(station.interface, address, if address.is_ipv6() { 64 } else { 24 })
    }

    /// Removes an address from a host, as somebody else would.
    pub fn remove_address(&self, number: usize, address: IpAddr) -> Result<Instant> {
        let station = self.station(number);
        station.route.remove_address(station.interface, address, if address.is_ipv6() { 64 } else { 24 })
    }

    /// Sends a frame from the stranger; answers when.
    pub fn forge(&self, frame: &[u8]) -> Result<Instant> {
        let at = Instant::now();
        send(&self.forger, frame, SendFlags::empty()).context("cannot send a forged frame")?;
        Ok(at)
    }

    /// The Ethernet address that the client would send to for `address`.
    pub fn neighbour(&self, address: IpAddr) -> Result<Option<String>> {
        let text = address.to_string();
        let entries =
            self.station(CLIENT).namespace.ip_json(&["neighbour", "show", "to", &text, "dev", "eth0"])?;
        let mac = entries.pointer("/0/lladdr").and_then(Value::as_str).map(str::to_owned);
        Ok(mac)
    }

    /// Lets the client ask anew who has the virtual addresses.
    pub fn forget_neighbours(&self) -> Result<()> {
        self.station(CLIENT).namespace.ip("neighbour flush dev eth0\n")
    }

    /// Waits until `host` alone has `address`.
    pub fn wait_holder(&mut self, host: usize, address: IpAddr, deadline: Duration) -> Result<()> {
        wait::until(format!("lb{} alone to have {address}", host + 1), deadline, || {
            self.check_running()?;
            self.has_only(host, address)
        })
    }

    /// Waits until some host alone has `address`, and answers which.
    pub fn wait_one_holder(&mut self, address: IpAddr, deadline: Duration) -> Result<usize> {
        wait::until(format!("one host to have {address}"), deadline, || match self.watch.holders(address)[..]
        {
            [host] => Ok(host),
            ref holders => bail!("the holders are {holders:?}"),
        })
    }

    /// Fails unless `host` alone has `address`.
    pub fn has_only(&self, host: usize, address: IpAddr) -> Result<()> {
        let holders = self.watch.holders(address);
        ensure!(holders == [host], "the holders are {holders:?}");
        Ok(())
    }

    /// Fails unless the client would send what is for `address` to `host`.
    pub fn neighbour_is(&self, host: usize, address: IpAddr) -> Result<()> {
        let seen = self.neighbour(address)?;
        let right = self.station(host).mac.to_string();
        ensure!(
            seen.as_deref() == Some(&right),
            "the client has {seen:?} for {address}, lb{} is {right}",
            host + 1
        );
        Ok(())
    }

    /// The state of quiet: `host` alone has the address, the client knows it, and is answered by it alone.
    pub fn is_quiet(&self, host: usize, meter: &Meter) -> Result<()> {
        let address = meter.target().ip();
        self.has_only(host, address)?;
        self.neighbour_is(host, address)?;
        let by = meter.answered_by(RECENT);
        ensure!(by == Some(host), "the client is answered by {by:?}");
        Ok(())
    }

    /// Waits for [`Lab::is_quiet`].
    pub fn wait_quiet(&self, host: usize, meter: &Meter, deadline: Duration) -> Result<()> {
        wait::until(format!("quiet with lb{}", host + 1), deadline, || self.is_quiet(host, meter))
    }

    /// The ends of all logs.
    pub fn logs(&self) -> String {
        self.daemons.iter().flatten().map(Daemon::tail).collect::<Vec<_>>().join("\n")
    }

    /// Copies the logs to the directory that `LAB_LOGS` names, for whoever looks for a fault.
    pub(crate) fn keep_logs(&self) {
        let Some(target) = std::env::var_os("LAB_LOGS").map(PathBuf::from) else { return };
        // The first argument of the inner program is the test's name.
        let target = target.join(std::env::args().nth(1).unwrap_or_default());
        for host in 0..HOSTS {
            let name = self.station(host).namespace.name();
            let from = self.directory.join(name).join("log");
            if from.is_file() && fs::create_dir_all(&target).is_ok() {
                let _ = fs::copy(from, target.join(format!("{name}.log")));
            }
        }
    }
}

/// Prints a measurement, also when the test passes.
pub fn say(line: &str) {
    // What the inner program prints on its standard output is shown only when it fails.
    let _ = writeln!(std::io::stderr(), "  {line}");
}

/// The stations' own addresses: .11 to .13, the client .100, the stranger .200.
fn own_address(number: usize, ipv6: bool) -> IpAddr {
    let last = match number {
        CLIENT => 100,
        STRANGER => 200,
        router => 11 + u8::try_from(router).unwrap_or(0),
    };
    if ipv6 {
        // In the text the same digits as of IPv4.
        let last = u16::from(last);
        let digits = ((last / 100) << 8) | ((last / 10 % 10) << 4) | (last % 10);
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, digits))
    } else {
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))
    }
}

fn station(number: usize, name: &str, namespaces: &Path, switch: &Namespace) -> Result<Station> {
    let namespace = Namespace::create(name, namespaces)?;
    let mac = Mac([0x02, 0, 0, 0, 0, u8::try_from(number + 1)?]);
    switch.ip(&format!(
        "link add {name} type veth peer name eth0 netns {}\nlink set {name} master main up\n",
        namespace.file().display()
    ))?;
    namespace.ip(&format!(
        "link set lo up\n\
         link set eth0 address {mac}\n\
         address add {}/24 dev eth0\n\
         address add {}/64 dev eth0\n\
         link set eth0 up\n",
        own_address(number, false),
        own_address(number, true)
    ))?;
    let route = Route::open(&namespace)?;
    let interface = namespace.index("eth0")?;
    let port = switch.index(name)?;
    Ok(Station { namespace, mac, route, interface, port })
}
