//! The first messages of a connection.

use std::hint::black_box;

use pointsman_core::startup::{FirstMessage, Parsed, ServerReply, StartupParser};

use crate::{Micro, Run, micro, repeat};

pub(crate) fn all() -> Vec<Micro> {
    let auth_ok = b"R\0\0\0\x08\0\0\0\0S\0\0\0\x17in_hot_standby\0off\0\0".as_slice();
    let starting = b"E\0\0\0\x52SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0Fpostmaster.c\0L2340\0RX\0\0";
    vec![
        micro("startup/ssl-request", 2000, || parse(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f])),
        micro("startup/parse", 2000, || parse(&message())),
        micro("startup/login", 2000, login),
        micro("reply/authentication", 5000, move || {
            repeat(move |_| ServerReply::inspect(black_box(auth_ok)))
        }),
        micro("reply/not-ready", 2000, move || repeat(move |_| ServerReply::inspect(black_box(starting)))),
    ]
}

/// As libpq sends it.
fn message() -> Vec<u8> {
    let parameters = b"user\0app\0database\0shop\0application_name\0checkout\0client_encoding\0UTF8\0\0";
    let length = u32::try_from(parameters.len() + 8).unwrap_or(0);
    [&length.to_be_bytes(), &196_608_u32.to_be_bytes(), parameters.as_slice()].concat()
}

fn parse(bytes: &[u8]) -> Run {
    let bytes = bytes.to_vec();
    repeat(move |_| {
        let parsed = StartupParser::default().feed(black_box(&bytes));
        assert!(matches!(&parsed, Parsed::Message(_, consumed) if *consumed == bytes.len()), "{parsed:?}");
        parsed
    })
}

/// What is read out of a start-up message for the register.
fn login() -> Run {
    let Parsed::Message(FirstMessage::Startup(startup), _) = StartupParser::default().feed(&message()) else {
        panic!("not a start-up message")
    };
    repeat(move |_| {
        let startup = black_box(&startup);
        black_box((startup.user(), startup.database(), startup.application_name()));
    })
}
