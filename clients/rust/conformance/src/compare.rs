//! Whether what came is what was expected.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

/// Says what differs, if anything does.
pub(crate) fn compare(expected: &Value, came: Option<&Value>) -> Result<(), String> {
    let came_or_null = came.unwrap_or(&Value::Null);
    let differs = || Err(format!("expected {}, but came {}", shown(expected), shown(came_or_null)));
    let check = |fits: bool| if fits { Ok(()) } else { differs() };
    match expected {
        Value::String(word) if word == "$any" => check(!is_absent(came)),
        Value::String(word) if word == "$absent" => check(is_absent(came)),
        Value::Object(map) => match matcher(map) {
            Some((word, argument)) => check(fits(word, argument, came_or_null)?),
            None => {
                let Value::Object(fields) = came_or_null else { return differs() };
                for (key, value) in map {
                    compare(value, fields.get(key)).map_err(|error| format!("{key}: {error}"))?;
                }
                Ok(())
            }
        },
        Value::Array(items) => {
            let Value::Array(elements) = came_or_null else { return differs() };
            if items.len() != elements.len() {
                return differs();
            }
            for (index, (item, element)) in items.iter().zip(elements).enumerate() {
                compare(item, Some(element)).map_err(|error| format!("{index}: {error}"))?;
            }
            Ok(())
        }
        Value::Number(number) => match came_or_null {
            Value::Number(other) => check(digits(&number.to_string()) == digits(&other.to_string())),
            _ => differs(),
        },
        _ => check(expected == came_or_null),
    }
}

fn matcher(map: &Map<String, Value>) -> Option<(&str, &Value)> {
    let (key, argument) = map.iter().next().filter(|_| map.len() == 1)?;
    key.starts_with('$').then_some((key, argument))
}

fn fits(word: &str, argument: &Value, came: &Value) -> Result<bool, String> {
    let number = |value: &Value| value.as_f64();
    let given = || number(argument).ok_or_else(|| format!("{word} needs a number"));
    Ok(match word {
        "$at_least" => number(came).is_some_and(|came| given().is_ok_and(|least| came >= least)),
        "$at_most" => number(came).is_some_and(|came| given().is_ok_and(|most| came <= most)),
        "$in_seconds" => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            let bound =
                |index: usize| argument.get(index).and_then(number).ok_or("$in_seconds needs two numbers");
            let (from, to) = (now + bound(0)?, now + bound(1)?);
            number(came).is_some_and(|moment| moment >= from && moment <= to)
        }
        "$unordered" => {
            let (Value::Array(items), Value::Array(elements)) = (argument, came) else { return Ok(false) };
            let mut rest: Vec<&Value> = elements.iter().collect();
            items.len() == elements.len()
                && items.iter().all(|item| {
                    let place = rest.iter().position(|element| compare(item, Some(element)).is_ok());
                    place.map(|place| rest.remove(place)).is_some()
                })
        }
        "$length" => {
            let length = match came {
                Value::Array(elements) => elements.len(),
                Value::String(text) => text.chars().count(),
                _ => return Ok(false),
            };
            argument.as_u64() == Some(length as u64)
        }
        "$contains" => match came {
            Value::String(text) => argument.as_str().is_some_and(|part| text.contains(part)),
            Value::Array(elements) => elements.iter().any(|element| compare(argument, Some(element)).is_ok()),
            _ => false,
        },
        "$not" => compare(argument, Some(came)).is_err(),
        other => return Err(format!("there is no matcher {other:?}")),
    })
}

fn is_absent(came: Option<&Value>) -> bool {
    match came {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Object(fields)) => fields.is_empty(),
        Some(_) => false,
    }
}

/// A number as its sign, its digits and its exponent, so that equal numbers are equal.
fn digits(number: &str) -> (bool, String, i64) {
    let (negative, number) = number.strip_prefix('-').map_or((false, number), |rest| (true, rest));
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{fraction}");
    let significant = all.trim_start_matches('0').trim_end_matches('0');
    if significant.is_empty() {
        return (false, String::new(), 0);
    }
    let zeros = all.len() - all.trim_end_matches('0').len();
    let exponent = exponent.parse::<i64>().unwrap_or(0) - fraction.len() as i64 + zeros as i64;
    (negative, significant.to_owned(), exponent)
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(500) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
