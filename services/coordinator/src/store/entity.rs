//! Rows. They never leave `store`. Only i32, i64, text and blobs, so that SQLite and Postgres
//! hold the same; times are microseconds since the Unix epoch, lists are JSON text.
#![allow(
    unreachable_pub,
    missing_docs,
    reason = "sea-orm's derive wants plain `pub`"
)]

macro_rules! entity {
    ($module:ident, $table:literal, { $($fields:tt)* }) => {
        pub mod $module {
            use sea_orm::entity::prelude::*;

            #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
            #[sea_orm(table_name = $table)]
            pub struct Model { $($fields)* }

            #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
            pub enum Relation {}

            impl ActiveModelBehavior for ActiveModel {}
        }
    };
}

entity!(meta, "meta", {
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    pub value: i64,
});

entity!(secret, "secret", {
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    pub sealed: Vec<u8>,
    pub public: Vec<u8>,
    pub created_at: i64,
});

entity!(network, "network", {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Vec<u8>,
    pub name: String,
    pub version: i64,
    pub trimmed: i64,
    pub created_at: i64,
});

entity!(token, "token", {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Vec<u8>,
    pub network_id: Option<Vec<u8>>,
    pub role: String,
    pub owner: String,
    pub reusable: i32,
    pub secret_hash: Vec<u8>,
    pub created_at: i64,
    pub expires_at: i64,
    pub revoked_at: Option<i64>,
    pub uses: i32,
});

entity!(token_use, "token_use", {
    #[sea_orm(primary_key, auto_increment = false)]
    pub token_id: Vec<u8>,
    #[sea_orm(primary_key, auto_increment = false)]
    pub identity_key: Vec<u8>,
    pub subject: Vec<u8>,
    pub used_at: i64,
});

entity!(node, "node", {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Vec<u8>,
    pub network_id: Vec<u8>,
    pub name: String,
    pub role: String,
    pub owner: String,
    pub identity_key: Vec<u8>,
    pub wg_key: Vec<u8>,
    pub disco_key: Vec<u8>,
    pub overlay_v4: i64,
    pub overlay_v6: Vec<u8>,
    pub uptime_class: String,
    pub version: String,
    pub created_at: i64,
    pub last_seen: Option<i64>,
    pub certificate_not_after: i64,
    pub services: String,
    pub ssh_user: String,
    pub ssh_via_loopback: i32,
    pub permit_hash: Option<Vec<u8>>,
    pub permit_expires_at: Option<i64>,
    pub changed_version: i64,
    /// JSON.
    pub labels: String,
});

entity!(tombstone, "tombstone", {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Vec<u8>,
    /// Absent for relays.
    pub network_id: Option<Vec<u8>>,
    pub version: i64,
    pub removed_at: i64,
});

entity!(host_key, "host_key", {
    #[sea_orm(primary_key, auto_increment = false)]
    pub node_id: Vec<u8>,
    #[sea_orm(primary_key, auto_increment = false)]
    pub line: String,
    pub held: i32,
    pub seen_at: i64,
});

entity!(relay, "relay", {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Vec<u8>,
    pub name: String,
    pub owner: String,
    pub identity_key: Vec<u8>,
    pub derp: String,
    pub stun: String,
    pub version: String,
    pub created_at: i64,
    pub last_seen: Option<i64>,
    pub certificate_not_after: i64,
});

entity!(operator, "operator", {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Vec<u8>,
    pub name: String,
    pub identity_key: Vec<u8>,
    pub created_at: i64,
    pub certificate_not_after: i64,
    pub revoked_at: Option<i64>,
});

entity!(event, "event", {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub time: i64,
    pub network: Option<String>,
    pub kind: String,
    pub subject: String,
    pub detail: String,
});

entity!(audit, "audit", {
    #[sea_orm(primary_key, auto_increment = false)]
    pub seq: i64,
    pub time: i64,
    pub actor: String,
    pub action: String,
    pub subject: String,
    pub before: String,
    pub after: String,
    pub previous_hash: Vec<u8>,
    pub hash: Vec<u8>,
});
