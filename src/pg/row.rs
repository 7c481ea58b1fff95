//! Rows into values, by column name.

use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use crate::domain::message::Message;
use crate::domain::{Error, Result};

/// One column of a row.
///
/// # Errors
/// `Internal` if the column is missing or of another type: then our SQL and our code disagree.
pub(super) fn column<'row, T: FromSql<'row>>(row: &'row Row, name: &str) -> Result<T> {
    row.try_get(name).map_err(Error::internal)
}

/// The message of a row with pgmq's columns.
pub(super) fn message(row: &Row, has_last_read_at: bool) -> Result<Message> {
    Ok(Message {
        msg_id: column(row, "msg_id")?,
        read_ct: column(row, "read_ct")?,
        enqueued_at: column(row, "enqueued_at")?,
        last_read_at: if has_last_read_at { column(row, "last_read_at")? } else { None },
        vt: column(row, "vt")?,
        message: column(row, "message")?,
        headers: column(row, "headers")?,
    })
}
