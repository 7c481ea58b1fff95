use tokio_postgres::config::TargetSessionAttrs;

use super::*;

const PASSWORD: &str = "s3cr3t";

fn parse(text: &str) -> DatabaseUrl {
    DatabaseUrl::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn error_of(text: &str) -> DatabaseUrlError {
    DatabaseUrl::parse(text).expect_err(text)
}

#[test]
fn a_url_and_pairs_say_the_same() {
    let url = parse("postgresql://me:s3cr3t@db.example:6432/app?sslmode=verify-full&sslrootcert=%2Fca.pem");
    let pairs = parse(
        "host=db.example port = 6432 user=me password='s3cr3t' dbname=app sslmode=verify-full sslrootcert=/ca.pem",
    );
    assert!(url == pairs);
    assert_eq!(url.to_string(), "db.example:6432/app");
    assert_eq!(url.tls, Tls::VerifyFull);
    assert_eq!(url.config.get_ssl_mode(), SslMode::Require);
    assert_eq!(url.ca_file.as_deref(), Some(Path::new("/ca.pem")));
    assert_eq!(url.config.get_password(), Some(PASSWORD.as_bytes()));
}

#[test]
fn several_hosts_keep_their_ports() {
    let url = parse("postgres://me@a:1,b,[::1]:3/app?target_session_attrs=primary&load_balance_hosts=random");
    assert_eq!(url.to_string(), "a:1,b:5432,[::1]:3/app");
    assert_eq!(url.config.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
    assert_eq!(parse("host=a,b port=7 dbname=app").to_string(), "a:7,b:7/app");
    assert_eq!(parse("host=a,b hostaddr=10.0.0.1,10.0.0.2 dbname=app").to_string(), "a:5432,b:5432/app");
    assert_eq!(parse("hostaddr=10.0.0.1 user=me").to_string(), "10.0.0.1:5432");
    assert_eq!(error_of("host=a,b,c port=1,2"), DatabaseUrlError::Ports { hosts: 3, ports: 2 });
    assert_eq!(
        error_of("host=a,b hostaddr=10.0.0.1"),
        DatabaseUrlError::Addresses { hosts: 2, addresses: 1 }
    );
}

#[test]
fn sockets_are_hosts_too() {
    assert_eq!(parse("postgres://me@%2Frun%2Fpg/app").to_string(), "/run/pg:5432/app");
    assert_eq!(parse("postgres:///app?host=/run/pg&port=7").to_string(), "/run/pg:7/app");
    assert_eq!(parse("postgres://localhost/app?host=/run/pg").to_string(), "/run/pg:5432/app");
}

#[test]
fn percent_encoding_is_undone() {
    let url = parse("postgres://m%40e:p%40%2F%3A%25%20s@h/my%20app");
    assert_eq!(url.config.get_user(), Some("m@e"));
    assert_eq!(url.config.get_password(), Some(&b"p@/:% s"[..]));
    assert_eq!(url.config.get_dbname(), Some("my app"));
    assert_eq!(parse("postgres://me:%ff%FE@h/app").config.get_password(), Some(&b"\xff\xfe"[..]));
    assert_eq!(error_of("postgres://%ff@h/app"), DatabaseUrlError::Encoding);
}

#[test]
fn quotes_and_backslashes_survive() {
    let url = parse(r"host=h user='it\'s me' password='a b\\c\'d' dbname=x\ y options='-c a=\'b\''");
    assert_eq!(url.config.get_user(), Some("it's me"));
    assert_eq!(url.config.get_password(), Some(&br"a b\c'd"[..]));
    assert_eq!(url.config.get_dbname(), Some("x y"));
    assert_eq!(url.config.get_options(), Some("-c a='b'"));
}

#[test]
fn every_sslmode_is_known() {
    let tls = |tail: &str| parse(&format!("postgres://h/app{tail}")).tls;
    assert_eq!(tls(""), Tls::Prefer);
    assert_eq!(tls("?sslmode=disable"), Tls::Disable);
    assert_eq!(tls("?sslmode=allow"), Tls::Prefer);
    assert_eq!(tls("?sslmode=prefer"), Tls::Prefer);
    assert_eq!(tls("?sslmode=require"), Tls::Require);
    assert_eq!(tls("?sslmode=verify-ca"), Tls::VerifyCa);
    assert_eq!(tls("?sslmode=verify-full"), Tls::VerifyFull);
    assert_eq!(tls("?sslmode=require&sslrootcert=/ca"), Tls::VerifyCa);
    assert_eq!(tls("?sslrootcert=/ca"), Tls::VerifyFull);
    assert_eq!(tls("?sslrootcert=system"), Tls::VerifyFull);
    assert_eq!(parse("postgres://h/app?sslrootcert=system").ca_file, None);
    assert_eq!(error_of("host=h sslmode=full"), DatabaseUrlError::bad_value("sslmode"));
    assert_eq!(
        error_of("host=h sslmode=require sslrootcert=system"),
        DatabaseUrlError::WeakSystemTrust { sslmode: "require".to_owned() }
    );
}

#[test]
fn a_ca_file_is_stronger_than_the_urls_own() {
    let with = |text: &str| DatabaseUrl::parse_with_ca_file(text, Path::new("/mine"));
    let tls =
        |text: &str| with(text).map(|url| (url.tls, url.ca_file.expect("a file").display().to_string()));
    assert_eq!(tls("host=h sslrootcert=/theirs"), Ok((Tls::VerifyFull, "/mine".to_owned())));
    assert_eq!(tls("host=h sslmode=require"), Ok((Tls::VerifyCa, "/mine".to_owned())));
    assert_eq!(tls("host=h sslmode=verify-ca"), Ok((Tls::VerifyCa, "/mine".to_owned())));
    assert_eq!(tls("host=h sslmode=verify-full"), Ok((Tls::VerifyFull, "/mine".to_owned())));
    let url = with("host=h").expect("fine");
    assert_eq!(url.config.get_ssl_mode(), SslMode::Require);
    for sslmode in ["disable", "allow", "prefer"] {
        let sslmode = sslmode.to_owned();
        let error = with(&format!("host=h sslmode={sslmode}")).expect_err("verifies nothing");
        assert_eq!(error, DatabaseUrlError::UselessCaFile { sslmode });
    }
}

#[test]
fn a_client_certificate_has_its_key() {
    let url = parse("host=h sslcert=/c.pem sslkey=/k.pem");
    let expected = ClientCertificate { certificate: "/c.pem".into(), key: "/k.pem".into() };
    assert_eq!(url.client_certificate, Some(expected));
    assert_eq!(error_of("host=h sslcert=/c.pem"), DatabaseUrlError::HalfCertificate);
    assert_eq!(error_of("host=h sslkey=/k.pem"), DatabaseUrlError::HalfCertificate);
}

#[test]
fn timeouts_have_the_units_of_libpq() {
    let url = parse("host=h connect_timeout=3 tcp_user_timeout=1500 keepalives_idle=9 keepalives_count=4");
    assert_eq!(url.config.get_connect_timeout(), Some(&Duration::from_secs(3)));
    assert_eq!(url.config.get_tcp_user_timeout(), Some(&Duration::from_millis(1500)));
    assert_eq!(url.config.get_keepalives_idle(), Duration::from_secs(9));
    assert_eq!(url.config.get_keepalives_retries(), Some(4));
}

#[test]
fn what_has_no_effect_here_is_taken() {
    let url = parse(
        "postgres://h/app?gssencmode=disable&client_encoding=UTF8&connect_timeout=&channel_binding=require",
    );
    assert_eq!(url.to_string(), "h:5432/app");
    assert_eq!(error_of("host=h gssencmode=require"), DatabaseUrlError::bad_value("gssencmode"));
    assert_eq!(error_of("host=h client_encoding=LATIN1"), DatabaseUrlError::bad_value("client_encoding"));
}

#[test]
fn all_unknown_parameters_are_named() {
    let expected =
        DatabaseUrlError::UnknownParameters { names: vec!["pgbouncer".to_owned(), "schema".to_owned()] };
    assert_eq!(error_of("postgres://me:s3cr3t@h/app?schema=x&pgbouncer=true"), expected);
    assert!(expected.to_string().starts_with("parameters are unknown: pgbouncer, schema; known are user, "));
}

#[test]
fn wrong_values_say_what_would_be_right() {
    for (text, name) in [
        ("host=h port=0x1", "port"),
        ("postgres://h:70000/app", "port"),
        ("host=h connect_timeout=soon", "connect_timeout"),
        ("host=h tcp_user_timeout=-1", "tcp_user_timeout"),
        ("host=h hostaddr=example.com", "hostaddr"),
        ("host=h target_session_attrs=standby", "target_session_attrs"),
        ("host=h keepalives_count=many", "keepalives_retries"),
    ] {
        assert_eq!(error_of(text), DatabaseUrlError::bad_value(name), "{text}");
    }
}

#[test]
fn what_is_no_address_is_told_apart() {
    for text in [
        "",
        "db",
        "localhost/app",
        "me:s3cr3t@h/app",
        "mysql://me:s3cr3t@h/app",
        "localhost:5432/app?sslmode=x",
    ] {
        assert_eq!(error_of(text), DatabaseUrlError::Shape, "{text}");
    }
    assert_eq!(error_of("postgres://"), DatabaseUrlError::NoHost);
    assert_eq!(error_of("postgres:///app"), DatabaseUrlError::NoHost);
    assert_eq!(error_of("dbname=app user=me"), DatabaseUrlError::NoHost);
    assert_eq!(error_of("host=h password='s3cr3t"), DatabaseUrlError::UnendedQuote);
    assert_eq!(error_of("postgres://h/app?sslmode"), DatabaseUrlError::NoValue);
}

#[test]
fn a_password_is_never_shown() {
    for text in [
        "postgres://me:s3cr3t@h/app",
        "host=h user=me password=s3cr3t",
        "postgres://h/app?user=me&password=s3cr3t",
    ] {
        let url = parse(text);
        assert_eq!(url.config.get_password(), Some(PASSWORD.as_bytes()));
        assert!(!format!("{url} {url:?} {:?}", url.config).contains(PASSWORD));
    }
    for text in [
        "me:s3cr3t@h/app",
        "postgres://me:s3cr3t@h/app?nonsense=1",
        "postgres://me:s3cr3t@h:port/app",
        "postgres://me:s3cr3t/x@h/app",
        "postgres://me:12/s3cr3t@h/app",
        "postgres://me:12/s3cr3t@h",
        "postgres://me:12?s3cr3t=x@h/app",
        "postgres://me:12?s3cr3t@h/app",
        "postgres://me:s3cr3t?x@h/app",
        "postgres://h/app?password=s3cr3t&x",
        "host=h password=two s3cr3t",
        "host=h password='s3cr3t",
        "host=h password=s3cr3t nonsense=1",
        "s3cr3t=1@h",
        "password = s3cr3t",
    ] {
        let error = error_of(text);
        assert!(!format!("{error} {error:?}").contains(PASSWORD), "{text}: {error:?}");
    }
    assert_eq!(parse("postgres://me:a@b#c:d@h/app").config.get_password(), Some(&b"a@b#c:d"[..]));
}

#[test]
fn no_single_slip_shows_the_password() {
    let addresses = [
        "postgres://me:s3cr3t@h:1/app?sslmode=require",
        "host=h password='s3cr3t' user=me",
        "password=s3cr3t host=h",
    ];
    for address in addresses {
        let secret = address.find(PASSWORD).expect("it has one");
        let around = (0..=secret).chain(secret + PASSWORD.len()..=address.len());
        for (at, slip) in around.flat_map(|at| "@/?:&=,#%[]' \\é".chars().map(move |slip| (at, slip))) {
            let (before, after) = address.split_at(at);
            let mut replaced = after.chars();
            let is_replaceable = at != secret && replaced.next().is_some();
            let mut texts = vec![format!("{before}{slip}{after}")];
            if is_replaceable {
                texts.push(format!("{before}{slip}{}", replaced.as_str()));
                texts.push(format!("{before}{}", replaced.as_str()));
            }
            for text in texts {
                let shown = match DatabaseUrl::parse(&text) {
                    Ok(url) => format!("{url} {url:?}"),
                    Err(error) => format!("{error} {error:?}"),
                };
                assert!(!shown.contains(PASSWORD), "{text}: {shown}");
            }
        }
    }
}
