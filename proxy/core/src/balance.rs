//! Which of several candidates a new session goes to.
//!
//! A pure function of the candidates, their loads and a [`Draw`]: the same input gives the same choice on
//! every machine and in every version. Nothing is allocated and no floating point is used.

use std::cmp::Ordering;
use std::net::IpAddr;

/// How a listener spreads its sessions: its `balance` in the configuration.
pub use pointsman_config::Balance as Policy;

#[cfg(test)]
mod tests;

/// A member that a session may go to, as balancing sees it.
pub trait Candidate {
    /// What names it on every load balancer alike and for all time, for [`Policy::Source`].
    fn key(&self) -> &str;
    /// Its share relative to the others; 0: no new sessions.
    fn weight(&self) -> u32;
    /// Sessions it serves through this load balancer, dials under way included.
    fn load(&self) -> u32;
}

/// What is special about this one choice.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// Counts the choices of a listener; round robin and ties go by it.
    pub ticket: u64,
    /// Any random number; [`Policy::RandomTwo`] goes by it.
    pub random: u64,
    /// The client's address, after a PROXY header was read; [`Policy::Source`] goes by it.
    pub client: IpAddr,
}

/// Chooses one of the candidates, or none when each is excluded or has weight 0.
///
/// `excluded` says which ones this session must not go to, because it has tried them in vain. The order of the
/// candidates matters to round robin, to `first` and to ties; never to `source`.
pub fn pick<C: Candidate>(
    policy: Policy,
    candidates: &[C],
    draw: Draw,
    excluded: impl Fn(&C) -> bool,
) -> Option<usize> {
    let pool = Pool { candidates, excluded };
    match policy {
        Policy::RoundRobin => pool.in_turn(draw.ticket),
        Policy::LeastConnections => pool.least_loaded(draw.ticket),
        Policy::Source => pool.by_source(draw.client),
        Policy::RandomTwo => pool.better_of_two(draw.random),
        Policy::First => pool.usable().map(|(index, _)| index).next(),
    }
}

struct Pool<'a, C, E> {
    candidates: &'a [C],
    excluded: E,
}

impl<'a, C: Candidate, E: Fn(&C) -> bool> Pool<'a, C, E> {
    fn usable(&self) -> impl Iterator<Item = (usize, &'a C)> {
        let all = self.candidates.iter().enumerate();
        all.filter(|(_, candidate)| candidate.weight() > 0 && !(self.excluded)(candidate))
    }

    /// Each weight owns a run of slots on a circle. Steps of about the golden section of the circle, which
    /// share no divisor with it, visit every slot once per round and never stay long in one run.
    fn in_turn(&self, ticket: u64) -> Option<usize> {
        let divisor =
            self.usable().fold(0, |divisor, (_, candidate)| gcd(divisor, candidate.weight().into()));
        let slots: u64 = self.usable().map(|(_, candidate)| u64::from(candidate.weight()) / divisor).sum();
        let mut step = scale(slots, GOLDEN_SECTION).max(1);
        while gcd(step, slots) > 1 {
            step += 1;
        }
        let slot = u128::from(ticket) * u128::from(step) % u128::from(slots.max(1));
        self.owner_of(u64::try_from(slot).unwrap_or(0), divisor, None)
    }

    /// Whose run of slots the slot lies in, when each candidate but `without` has `weight / unit` of them.
    fn owner_of(&self, mut slot: u64, unit: u64, without: Option<usize>) -> Option<usize> {
        for (index, candidate) in self.usable().filter(|(index, _)| Some(*index) != without) {
            let run = u64::from(candidate.weight()) / unit.max(1);
            if slot < run {
                return Some(index);
            }
            slot -= run;
        }
        None
    }

    fn least_loaded(&self, ticket: u64) -> Option<usize> {
        let (_, least) = self.usable().min_by(|(_, a), (_, b)| by_load(*a, *b))?;
        let tied = || self.usable().filter(|(_, candidate)| by_load(*candidate, least).is_eq());
        let turn = ticket % u64::try_from(tied().count()).unwrap_or(1).max(1);
        tied().nth(usize::try_from(turn).unwrap_or(0)).map(|(index, _)| index)
    }

    /// Weighted rendezvous hashing: each candidate draws an exponentially distributed time from (client, key),
    /// at a rate equal to its weight; the earliest wins. A member that goes away moves its own clients only.
    fn by_source(&self, client: IpAddr) -> Option<usize> {
        let time = |candidate: &C| u128::from(minus_log2(source_hash(client, candidate.key())));
        let earlier = |a: &C, b: &C| {
            // time(a) / weight(a) against time(b) / weight(b), without dividing.
            let (a_time, b_time) = (time(a) * u128::from(b.weight()), time(b) * u128::from(a.weight()));
            a_time.cmp(&b_time).then_with(|| a.key().cmp(b.key()))
        };
        self.usable().min_by(|(_, a), (_, b)| earlier(a, b)).map(|(index, _)| index)
    }

    fn better_of_two(&self, random: u64) -> Option<usize> {
        let total: u64 = self.usable().map(|(_, candidate)| u64::from(candidate.weight())).sum();
        let first = self.owner_of(scale(total, mix(random)), 1, None)?;
        let a = self.candidates.get(first)?;
        let rest = total - u64::from(a.weight());
        let second = self.owner_of(scale(rest, mix(random.wrapping_add(GOLDEN_SECTION))), 1, Some(first));
        let Some((index, b)) = second.and_then(|index| Some((index, self.candidates.get(index)?))) else {
            return Some(first);
        };
        Some(if by_load(b, a).is_lt() { index } else { first })
    }
}

/// Compares load / weight, without dividing.
fn by_load<C: Candidate>(a: &C, b: &C) -> Ordering {
    let (a_load, b_load) = (u64::from(a.load()), u64::from(b.load()));
    (a_load * u64::from(b.weight())).cmp(&(b_load * u64::from(a.weight())))
}

/// 2^64 divided by the golden ratio, odd.
const GOLDEN_SECTION: u64 = 0x9e37_79b9_7f4a_7c15;

/// `fraction` (of 2^64) of `count`: 0 to `count - 1`.
fn scale(count: u64, fraction: u64) -> u64 {
    u64::try_from((u128::from(count) * u128::from(fraction)) >> 64).unwrap_or(0)
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// The hash behind [`Policy::Source`]. Fixed for ever: load balancers of different versions must agree.
///
/// FNV-1a of 64 bits over the key and the 16 bytes of the address (IPv4 in its IPv4-mapped form, RFC 4291
/// section 2.5.5.2), then the finaliser of splitmix64, because FNV alone mixes its upper bits poorly.
fn source_hash(client: IpAddr, key: &str) -> u64 {
    let client = match client {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let bytes = key.bytes().chain(client.octets());
    let fnv = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mix(fnv)
}

/// The finaliser of splitmix64 (Steele, Lea, Flood 2014): every input bit changes half of the output bits.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// -log2((x + 1) / 2^64) with 32 binary places, by repeated squaring: integers, so the same everywhere.
fn minus_log2(x: u64) -> u64 {
    const PLACES: u32 = 32;
    let Some(value) = x.checked_add(1) else { return 0 };
    // The mantissa in [1, 2) with 63 binary places.
    let mut mantissa = value << value.leading_zeros();
    let mut log = u64::from(value.ilog2());
    for _ in 0..PLACES {
        let square = u128::from(mantissa) * u128::from(mantissa);
        // The square lies in [1, 4): one more binary place of the logarithm says in which half.
        let is_upper = square >> 127 == 1;
        mantissa = u64::try_from(square >> if is_upper { 64 } else { 63 }).unwrap_or(u64::MAX);
        log = log << 1 | u64::from(is_upper);
    }
    (64 << PLACES) - log
}
