//! What guard and worker say to each other: one message, one datagram on their pair of sockets.
//!
//! A message is a byte for the version, a byte for its kind, and its fields, numbers in network order. The two are one
//! program, so there is one version; another one is an error, not a negotiation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use pointsman_config::VipName;
use pointsman_vrrp::advert::Envelope;

const VERSION: u8 = 1;
/// The longest message.
pub const LONGEST: usize = 192 * 1024;

/// What the guard has to know of a virtual router, so that it can clean up behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cover {
    /// Its name.
    pub router: VipName,
    /// The number of its interface.
    pub index: u32,
    /// The name of its interface, for messages.
    pub interface: String,
    /// What is to be removed. An owner (priority 255) has nothing here: its addresses stay.
    pub addresses: Vec<IpNet>,
    /// The adverts with priority 0, ready to be sent: one for the group, or one for each host.
    pub farewells: Vec<Farewell>,
}

/// A packet that says that we hold the addresses no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Farewell {
    /// From which of our addresses, where to. The hop limit is always 255.
    pub envelope: Envelope,
    /// The packet, without an IP header.
    pub packet: Vec<u8>,
}

/// The worker to the guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// It works: it has started, or a reload is over.
    Ready,
    /// It lives, and says so again within this time.
    Heartbeat(Duration),
    /// A virtual router, new or changed.
    Cover(Cover),
    /// There is no such virtual router any more.
    Forget(VipName),
    /// Its addresses are about to be added (true), or have been removed.
    Held(VipName, bool),
    /// A line for whoever asks systemd.
    Status(String),
}

/// The guard to the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Hand over and end.
    Stop,
    /// Read the configuration anew.
    Reload,
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Longer than [`LONGEST`], or a field of it does not fit.
    #[error("a message that is too long")]
    TooLong,
    /// It ends too early.
    #[error("a message that is cut off")]
    Short,
    /// It goes on after its end.
    #[error("a message with something behind it")]
    Trailing,
    /// Of another program.
    #[error("a message of version {0}, where only version {VERSION} is known")]
    Version(u8),
    /// Of no known kind.
    #[error("a message of the unknown kind {0}")]
    Kind(u8),
    /// A field has a value that it cannot have.
    #[error("a message whose {0} makes no sense")]
    Field(&'static str),
}

impl Word {
    /// As bytes.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        let mut out = Writer(vec![VERSION]);
        match self {
            Self::Ready => out.u8(1),
            Self::Heartbeat(every) => {
                out.u8(2);
                out.u32(u32::try_from(every.as_millis()).map_err(|_| WireError::TooLong)?);
            }
            Self::Cover(cover) => {
                out.u8(3);
                out.cover(cover)?;
            }
            Self::Forget(router) => {
                out.u8(4);
                out.text(router.as_str())?;
            }
            Self::Held(router, held) => {
                out.u8(5);
                out.text(router.as_str())?;
                out.u8((*held).into());
            }
            Self::Status(line) => {
                out.u8(6);
                out.text(line)?;
            }
        }
        if out.0.len() > LONGEST { Err(WireError::TooLong) } else { Ok(out.0) }
    }

    /// From bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut from = Reader(bytes);
        let word = match from.kind()? {
            1 => Self::Ready,
            2 => Self::Heartbeat(Duration::from_millis(from.u32()?.into())),
            3 => Self::Cover(from.cover()?),
            4 => Self::Forget(from.name()?),
            5 => Self::Held(from.name()?, from.flag()?),
            6 => Self::Status(from.text()?.to_owned()),
            kind => return Err(WireError::Kind(kind)),
        };
        from.end()?;
        Ok(word)
    }
}

impl Order {
    /// As bytes.
    pub const fn encode(self) -> [u8; 2] {
        match self {
            Self::Stop => [VERSION, 1],
            Self::Reload => [VERSION, 2],
        }
    }

    /// From bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut from = Reader(bytes);
        let order = match from.kind()? {
            1 => Self::Stop,
            2 => Self::Reload,
            kind => return Err(WireError::Kind(kind)),
        };
        from.end()?;
        Ok(order)
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u16(&mut self, value: usize) -> Result<(), WireError> {
        let value = u16::try_from(value).map_err(|_| WireError::TooLong)?;
        self.0.extend(value.to_be_bytes());
        Ok(())
    }

    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_be_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        self.u16(bytes.len())?;
        self.0.extend(bytes);
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), WireError> {
        self.bytes(text.as_bytes())
    }

    fn address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => {
                self.u8(4);
                self.0.extend(address.octets());
            }
            IpAddr::V6(address) => {
                self.u8(6);
                self.0.extend(address.octets());
            }
        }
    }

    fn cover(&mut self, cover: &Cover) -> Result<(), WireError> {
        self.text(cover.router.as_str())?;
        self.u32(cover.index);
        self.text(&cover.interface)?;
        self.u16(cover.addresses.len())?;
        for net in &cover.addresses {
            self.address(net.addr());
            self.u8(net.prefix_len());
        }
        self.u16(cover.farewells.len())?;
        for Farewell { envelope, packet } in &cover.farewells {
            self.address(envelope.source);
            self.address(envelope.destination);
            self.u8(envelope.hop_limit);
            self.bytes(packet)?;
        }
        Ok(())
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn kind(&mut self) -> Result<u8, WireError> {
        match self.u8()? {
            VERSION => self.u8(),
            version => Err(WireError::Version(version)),
        }
    }

    fn end(&self) -> Result<(), WireError> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError::Trailing) }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (first, rest) = self.0.split_first_chunk().ok_or(WireError::Short)?;
        self.0 = rest;
        Ok(*first)
    }

    fn u8(&mut self) -> Result<u8, WireError> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<usize, WireError> {
        self.array().map(|bytes| u16::from_be_bytes(bytes).into())
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_be_bytes)
    }

    fn flag(&mut self) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Field("flag")),
        }
    }

    fn bytes(&mut self) -> Result<&'a [u8], WireError> {
        let length = self.u16()?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(WireError::Short)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| WireError::Field("text"))
    }

    fn name(&mut self) -> Result<VipName, WireError> {
        VipName::new(self.text()?).map_err(|_| WireError::Field("name"))
    }

    fn address(&mut self) -> Result<IpAddr, WireError> {
        match self.u8()? {
            4 => self.array::<4>().map(|octets| Ipv4Addr::from(octets).into()),
            6 => self.array::<16>().map(|octets| Ipv6Addr::from(octets).into()),
            _ => Err(WireError::Field("address")),
        }
    }

    fn cover(&mut self) -> Result<Cover, WireError> {
        let router = self.name()?;
        let index = self.u32()?;
        let interface = self.text()?.to_owned();
        // Nothing is reserved for a number that was only claimed.
        let mut addresses = Vec::new();
        for _ in 0..self.u16()? {
            let address = self.address()?;
            addresses.push(IpNet::new(address, self.u8()?).map_err(|_| WireError::Field("prefix"))?);
        }
        let mut farewells = Vec::new();
        for _ in 0..self.u16()? {
            let (source, destination) = (self.address()?, self.address()?);
            let envelope = Envelope { source, destination, hop_limit: self.u8()? };
            farewells.push(Farewell { envelope, packet: self.bytes()?.to_vec() });
        }
        Ok(Cover { router, index, interface, addresses, farewells })
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn name() -> impl Strategy<Value = VipName> {
        "[a-z0-9._-]{1,64}".prop_map(|text| VipName::new(&text).unwrap())
    }

    fn net() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (any::<Ipv4Addr>(), 0_u8..=32).prop_map(|(ip, prefix)| IpNet::new(ip.into(), prefix).unwrap()),
            (any::<Ipv6Addr>(), 0_u8..=128).prop_map(|(ip, prefix)| IpNet::new(ip.into(), prefix).unwrap()),
        ]
    }

    fn farewell() -> impl Strategy<Value = Farewell> {
        let envelope = (any::<IpAddr>(), any::<IpAddr>(), any::<u8>())
            .prop_map(|(source, destination, hop_limit)| Envelope { source, destination, hop_limit });
        (envelope, vec(any::<u8>(), 0..100)).prop_map(|(envelope, packet)| Farewell { envelope, packet })
    }

    fn word() -> impl Strategy<Value = Word> {
        let cover = (name(), any::<u32>(), "[a-z0-9]{1,15}", vec(net(), 0..6), vec(farewell(), 0..4));
        prop_oneof![
            Just(Word::Ready),
            any::<u32>().prop_map(|ms| Word::Heartbeat(Duration::from_millis(ms.into()))),
            cover.prop_map(|(router, index, interface, addresses, farewells)| {
                Word::Cover(Cover { router, index, interface, addresses, farewells })
            }),
            name().prop_map(Word::Forget),
            (name(), any::<bool>()).prop_map(|(router, held)| Word::Held(router, held)),
            "\\PC{0,80}".prop_map(Word::Status),
        ]
    }

    proptest! {
        #[test]
        fn what_is_said_is_understood(word in word()) {
            let bytes = word.encode().unwrap();
            prop_assert_eq!(Word::decode(&bytes), Ok(word));
        }

        #[test]
        fn no_part_of_a_message_is_one(word in word(), extra in any::<u8>()) {
            let mut bytes = word.encode().unwrap();
            for length in 0..bytes.len() {
                prop_assert_eq!(Word::decode(&bytes[..length]), Err(WireError::Short));
            }
            bytes.push(extra);
            prop_assert_eq!(Word::decode(&bytes), Err(WireError::Trailing));
        }

        #[test]
        fn no_bytes_are_fatal(kind in 0_u8..10, bytes in vec(any::<u8>(), 0..200)) {
            let mut message = vec![VERSION, kind];
            message.extend(bytes);
            if let Ok(word) = Word::decode(&message) {
                prop_assert_eq!(word.encode(), Ok(message));
            }
        }
    }

    #[test]
    fn orders_and_other_versions() {
        for order in [Order::Stop, Order::Reload] {
            assert_eq!(Order::decode(&order.encode()), Ok(order));
        }
        assert_eq!(Order::decode(&[2, 1]), Err(WireError::Version(2)));
        assert_eq!(Order::decode(&[VERSION, 9]), Err(WireError::Kind(9)));
        assert_eq!(Word::decode(&[]), Err(WireError::Short));
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        let line = "x".repeat(LONGEST);
        assert_eq!(Word::Status(line).encode(), Err(WireError::TooLong));
    }
}
