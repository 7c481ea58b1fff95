//! How values of ours travel in Postgres' binary format.

use std::error::Error;

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

use crate::domain::Timestamp;

/// Microseconds from 1970-01-01 to 2000-01-01, where Postgres begins to count.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// The first moment that Postgres knows, in 4714 BC, as it counts. Only a forged receipt names an earlier one; no row
/// can, so that the first one stands for it.
const POSTGRES_FIRST_MICROS: i64 = -211_813_488_000_000_000;

impl ToSql for Timestamp {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let micros = match self.unix_micros() {
            infinite @ (i64::MIN | i64::MAX) => infinite,
            micros => micros.saturating_sub(POSTGRES_EPOCH_MICROS).max(POSTGRES_FIRST_MICROS),
        };
        out.put_i64(micros);
        Ok(IsNull::No)
    }

    accepts!(TIMESTAMPTZ);
    to_sql_checked!();
}

impl<'a> FromSql<'a> for Timestamp {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        let micros = match i64::from_be_bytes(raw.try_into()?) {
            infinite @ (i64::MIN | i64::MAX) => infinite,
            micros => micros.saturating_add(POSTGRES_EPOCH_MICROS),
        };
        Ok(Self::from_unix_micros(micros))
    }

    accepts!(TIMESTAMPTZ);
}
