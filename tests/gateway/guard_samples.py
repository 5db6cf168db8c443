"""Secrets of every kind, none of them anybody's, and what looks like one and is none."""

PEM = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEA7bq8mZcX0yQk\n" * 4 + "Zz9=\n-----END RSA PRIVATE KEY-----"

SECRETS = [
    ("CREDIT_CARD", "4111111111111111"),
    ("CREDIT_CARD", "5500-0000-0000-0004"),
    ("CREDIT_CARD", "3782 822463 10005"),
    ("US_SSN", "536-90-4399"),
    ("EMAIL_ADDRESS", "jane.doe+x@mail.example.co.uk"),
    ("PHONE_NUMBER", "+1 212-555-0123"),
    ("PHONE_NUMBER", "+49 30 901820"),
    ("IBAN_CODE", "DE89 3704 0044 0532 0130 00"),
    ("IBAN_CODE", "GB82WEST12345698765432"),
    ("IP_ADDRESS", "203.0.113.77"),
    ("IP_ADDRESS", "2001:db8:0:1::8a2e:370"),
    ("API_KEY", "sk-proj-abcdefghijklmnop1234"),
    ("API_KEY", "sk-ant-api03-AbCdEfGhIjKlMnOpQr"),
    ("API_KEY", "ghp_abcdefghijklmnopqrstuvwxyz0123456789"),
    ("API_KEY", "github_pat_11ABCDEFG0abcdefghijklmn"),
    ("API_KEY", "AKIAIOSFODNN7EXAMPLE"),
    ("API_KEY", "xoxb-1234567890-abcdefghij"),
    ("API_KEY", "AIzaSyA-1234567890abcdefghijklmnopqrstu"),
    ("API_KEY", "mosaic_abcdefghijklmnopqrstuvwx"),
    ("API_KEY", "hf_abcdefghijklmnopqrstuvwxyzABCDEF"),
    ("API_KEY", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl"),
    ("API_KEY", PEM),
]

NEAR_MISSES = [
    "4111111111111112",
    "4111 1111 1111 1112",
    "DE88 3704 0044 0532 0130 00",
    "666-12-3456",
    "123-45-67890",
    "jane.doe@nowhere.invalidtld",
    "jane @ example.com",
    "300.400.500.600",
    "12:30:45",
    "std::dead:beef",
    "2024-01-02",
    "sk-short",
    "AKIA12",
    "hf_hub",
    "3.14159265358979",
    "0.301029996",
    "aix-6107-1415-32",
    "-----BEGIN CERTIFICATE-----",
]
