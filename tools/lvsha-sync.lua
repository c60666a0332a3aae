-- Show the sync of load balancers in Wireshark and tshark.
--
-- lvsha's own protocol is docs/sync-protocol.md. A datagram of it has 0xffff in bytes 2 and 3;
-- any other one on the port is the kernel's, of version 0 or 1, as ip_vs_sync.c has it. Sealed
-- datagrams are shown as sealed: there are no keys here.
--
-- msgpack is read here without a library. What does not fit the format ends the reading of its
-- datagram, is marked as malformed at its place, and what stands before is shown.
--
-- tshark -X lua_script:tools/lvsha-sync.lua -r FILE

local PORT = 8848
local DEPTH_MAX = 16
local ELEMENTS_MAX = 4096
local STRING_MAX = 255
local DETAILS_BYTES_MAX = 300
local DETAIL_BYTES = 5
local FIELDS_MAX = 24
local FOUND_BYTES_MAX = 255
local BUCKETS = 511

local lvsha = Proto("lvsha", "lvsha sync")
local kernel = Proto("ipvs_sync", "IPVS sync")

local TYPES = {
  [1] = "heartbeat", [2] = "records", [3] = "snapshot request", [4] = "snapshot begin",
  [5] = "snapshot chunk", [6] = "snapshot end", [7] = "configuration", [8] = "gap request",
  [9] = "sums", [10] = "handover", [12] = "changes", [13] = "part begin", [14] = "part chunk",
  [15] = "part end", [16] = "sums request", [17] = "progress", [18] = "question",
  [19] = "answer", [20] = "opinions",
}
local ROLES = { [1] = "LEAD", [2] = "DRAIN", [3] = "FOLLOW" }
local PEER_STATES = { [0] = "PROBE", [1] = "SNAPSHOT", [2] = "REPLICATE" }
local VRRP_STATES = { [0] = "INIT", [1] = "BACKUP", [2] = "MASTER", [3] = "FAULT" }
local WITNESS = { [0] = "none", [1] = "unknown", [2] = "reachable", [3] = "unreachable" }
local FAMILIES = { [4] = "IPv4", [6] = "IPv6" }
local METHODS = { [0] = "NAT", [1] = "local", [2] = "tunnel", [3] = "direct routing", [4] = "bypass" }
local PROTOCOLS = { [0] = "mark", [6] = "TCP", [17] = "UDP", [50] = "ESP", [51] = "AH", [132] = "SCTP" }
local STATES = {
  [6] = { [0] = "NONE", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT", "TIME_WAIT", "CLOSE",
    "CLOSE_WAIT", "LAST_ACK", "LISTEN", "SYNACK" },
  [17] = { [0] = "NORMAL" },
  [132] = { [0] = "NONE", "INIT1", "INIT", "COOKIE_SENT", "COOKIE_REPLIED", "COOKIE_WAIT",
    "COOKIE", "COOKIE_ECHOED", "ESTABLISHED", "SHUTDOWN_SENT", "SHUTDOWN_RECEIVED",
    "SHUTDOWN_ACK_SENT", "REJECTED", "CLOSED" },
}
local TEMPLATE_STATES = { [0] = "NONE", "ASSURED" }
local FLAGS = {
  { "sync", "told by another", 0x0020 }, { "no_output", "replies pass elsewhere", 0x0080 },
  { "inactive", "inactive", 0x0100 }, { "out_sequence", "shifted from the server", 0x0200 },
  { "in_sequence", "shifted to the server", 0x0400 },
  { "no_client_port", "client port unknown", 0x0800 }, { "template", "template", 0x1000 },
  { "one_packet", "one packet", 0x2000 },
}
local FTP_MODES = { [0] = "active", [1] = "PASV", [3] = "EPSV" }
local SHIFTS = { "in.init", "in.delta", "in.previous_delta", "out.init", "out.delta", "out.previous_delta" }

-- Fields ----------------------------------------------------------------------------------

local f = {}
local function define(list, proto, prefix, make, name, title, ...)
  list[name] = make(prefix .. "." .. name, title, ...)
  table.insert(proto.fields, list[name])
end

do
  -- Assigning fields replaces the list, so it is gathered first.
  local gathered = {}
  local holder = { fields = gathered }
  local function add(make, name, title, ...) define(f, holder, "lvsha", make, name, title, ...) end
  local u8, u16, u32, u64 = ProtoField.uint8, ProtoField.uint16, ProtoField.uint32, ProtoField.uint64
  add(u8, "version", "Version")
  add(u8, "sync_id", "Sync id")
  add(u8, "sealed.key_id", "Key id", base.HEX)
  add(u64, "sealed.session", "Session", base.HEX)
  add(u64, "sealed.counter", "Counter")
  add(ProtoField.bytes, "sealed.text", "Sealed text")
  add(ProtoField.bytes, "sealed.tag", "Tag")
  add(u8, "type", "Type", base.DEC, TYPES)
  add(ProtoField.string, "node", "Node")
  add(u64, "epoch", "Epoch")
  add(u8, "role", "Role", base.DEC, ROLES)
  add(u32, "term", "Term")
  add(u64, "sequence", "Sequence number")
  add(u64, "connections", "Connections")
  add(ProtoField.bytes, "digest", "Digest of the configuration")
  add(ProtoField.string, "leader", "Leader")
  add(u64, "leader_epoch", "Leader's epoch")
  add(ProtoField.string, "node", "Node")
  add(u64, "node_epoch", "Node's epoch")
  add(u64, "moment", "Moment")
  add(u8, "state", "State", base.DEC, PEER_STATES)
  add(u64, "position", "Position")
  add(ProtoField.bool, "complete", "Complete")
  add(u8, "level", "Understands level")
  add(u8, "speaks", "Keeps to level")
  add(u64, "oldest", "Oldest number")
  add(u64, "heard", "Hears epoch")
  add(u64, "standing.told", "Told")
  add(u64, "standing.total", "Sum of all buckets", base.HEX)
  add(ProtoField.bool, "standing.current", "Current")
  add(u64, "standing.established", "Established")
  add(u64, "standing.exposed", "Exposed")
  add(u64, "standing.missing", "Numbers missing")
  add(u64, "standing.wanted", "Buckets wanted")
  add(u64, "standing.mismatched", "Buckets mismatched")
  add(u64, "standing.lost", "Datagrams lost")
  add(u64, "standing.repaired", "Datagrams repaired")
  add(u8, "duty.state", "State of the virtual router", base.DEC, VRRP_STATES)
  add(u8, "duty.witness", "Witness", base.DEC, WITNESS)
  add(u8, "duty.priority", "Priority")
  add(u64, "begin", "Snapshot")
  add(u64, "count", "Connections of the snapshot")
  add(ProtoField.bytes, "buckets", "Buckets")
  add(u16, "bucket", "Bucket")
  add(u64, "sum", "Sum", base.HEX)
  add(ProtoField.bool, "sums.current", "Current")
  add(u16, "first", "First bucket")
  add(u64, "range.first", "First number")
  add(u32, "range.count", "How many")
  add(u16, "part", "Part")
  add(u16, "parts", "Parts")
  add(ProtoField.string, "piece", "Piece")
  add(ProtoField.bytes, "piece.digest", "Digest of the piece")
  add(ProtoField.string, "asker", "Asker")
  add(u64, "opinions.list", "List")
  add(u32, "opinions.checked", "Servers checked")
  add(ProtoField.string, "opinions.service", "Service")
  add(u8, "opinions.opinion", "Opinion", base.DEC, { [0] = "not known", [1] = "down" })
  add(ProtoField.none, "group", "Group")
  add(ProtoField.none, "connection", "Connection")
  add(ProtoField.none, "ended", "Ended")
  add(ProtoField.bytes, "key", "Key")
  add(u8, "key.family", "Family", base.DEC, FAMILIES)
  add(ProtoField.bool, "key.template", "Template")
  add(u8, "key.protocol", "Protocol", base.DEC, PROTOCOLS)
  add(ProtoField.ipv4, "key.client", "Client")
  add(ProtoField.ipv6, "key.client6", "Client")
  add(u16, "key.client_port", "Client port")
  add(ProtoField.ipv4, "key.virtual", "Virtual address")
  add(ProtoField.ipv6, "key.virtual6", "Virtual address")
  add(u16, "key.virtual_port", "Virtual port")
  add(ProtoField.string, "key.found", "Found by the persistence engine")
  add(ProtoField.ipv4, "server", "Real server")
  add(ProtoField.ipv6, "server6", "Real server")
  add(u16, "server_port", "Real server's port")
  add(u8, "method", "Forwarding method", base.DEC, METHODS)
  add(u8, "connection.state", "State")
  add(ProtoField.string, "connection.state_name", "State")
  add(u32, "flags", "Flags", base.HEX)
  for _, flag in ipairs(FLAGS) do
    add(ProtoField.bool, "flags." .. flag[1], "Flag: " .. flag[2], 32, nil, flag[3])
  end
  add(ProtoField.double, "timeout", "Time-out (s)")
  add(u32, "mark", "Firewall mark", base.HEX)
  add(ProtoField.string, "engine", "Persistence engine")
  add(ProtoField.bytes, "parent", "Parent's key")
  add(u8, "dialogue.mode", "FTP: the client asked for", base.DEC, FTP_MODES)
  add(u32, "dialogue.answered", "FTP: the last reply began at")
  add(u8, "dialogue.answered_mode", "FTP: the last reply's mode", base.DEC, FTP_MODES)
  for _, name in ipairs(SHIFTS) do add(u32, "shift." .. name, "Shift: " .. name) end
  add(u16, "other", "Field of a later version")
  add(ProtoField.bytes, "other.value", "Its value")
  add(ProtoField.none, "more", "Elements of a later version")
  lvsha.fields = gathered
end

local malformed = ProtoExpert.new(
  "lvsha.malformed", "Malformed sync datagram", expert.group.MALFORMED, expert.severity.ERROR)
local reserved = ProtoExpert.new(
  "lvsha.unknown_type", "Message of an unknown type", expert.group.UNDECODED, expert.severity.NOTE)
lvsha.experts = { malformed, reserved }

-- msgpack ---------------------------------------------------------------------------------

-- A value is a table: kind, value, range, and first and stop, its place in the datagram. An array
-- has its elements as items; a string and bytes have content, where it begins, and length.

local function fail(tvb, at, message)
  error({ message = message, at = math.min(at, tvb:len() - 1) }, 0)
end

local function need(tvb, at, length)
  if at + length > tvb:len() then fail(tvb, at, "a body that is cut short") end
end

local read

local function read_array(tvb, at, content, count, depth)
  if count > ELEMENTS_MAX then fail(tvb, at, "an array of too many elements") end
  if depth > DEPTH_MAX then fail(tvb, at, "arrays within arrays, too deep") end
  local items, stop = {}, content
  for number = 1, count do
    items[number] = read(tvb, stop, depth + 1)
    stop = items[number].stop
  end
  return { kind = "array", items = items, first = at, stop = stop, range = tvb(at, stop - at) }
end

-- Forms of a character: lowest and highest first byte, lowest and highest second byte, length
-- (RFC 3629, section 4).
local CHARACTERS = {
  { 0x00, 0x7f, 0, 0, 1 }, { 0xc2, 0xdf, 0x80, 0xbf, 2 }, { 0xe0, 0xe0, 0xa0, 0xbf, 3 },
  { 0xe1, 0xec, 0x80, 0xbf, 3 }, { 0xed, 0xed, 0x80, 0x9f, 3 }, { 0xee, 0xef, 0x80, 0xbf, 3 },
  { 0xf0, 0xf0, 0x90, 0xbf, 4 }, { 0xf1, 0xf3, 0x80, 0xbf, 4 }, { 0xf4, 0xf4, 0x80, 0x8f, 4 },
}

local function is_utf8(text)
  local at = 1
  while at <= #text do
    local first, second = text:byte(at, at + 1)
    local length
    for _, form in ipairs(CHARACTERS) do
      if first >= form[1] and first <= form[2] and (form[5] == 1
        or (second ~= nil and second >= form[3] and second <= form[4])) then
        length = form[5]
      end
    end
    if length == nil or at + length - 1 > #text then return false end
    if text:sub(at + 2, at + length - 1):find("[^\128-\191]") then return false end
    at = at + length
  end
  return true
end

local function content_of(tvb, kind, at, head, length)
  need(tvb, at, head + length)
  local value = {
    kind = kind, first = at, content = at + head, length = length, stop = at + head + length,
    range = tvb(at, head + length),
  }
  if kind == "str" then
    value.value = length > 0 and tvb(at + head, length):raw() or ""
    if length > STRING_MAX or not is_utf8(value.value) then
      fail(tvb, at, "a string that is none, or too long")
    end
  end
  return value
end

-- Of integers: first byte, its length, and whether it has a sign.
local INTEGERS = {
  [0xcc] = { 1, false }, [0xcd] = { 2, false }, [0xce] = { 4, false }, [0xcf] = { 8, false },
  [0xd0] = { 1, true }, [0xd1] = { 2, true }, [0xd2] = { 4, true }, [0xd3] = { 8, true },
}
-- Of what has a length: first byte, kind, bytes of the length.
local LENGTHS = {
  [0xc4] = { "bin", 1 }, [0xc5] = { "bin", 2 }, [0xc6] = { "bin", 4 },
  [0xd9] = { "str", 1 }, [0xda] = { "str", 2 }, [0xdb] = { "str", 4 },
  [0xdc] = { "array", 2 }, [0xdd] = { "array", 4 },
}

local function plain(tvb, kind, value, at, length)
  return { kind = kind, value = value, first = at, stop = at + length, range = tvb(at, length) }
end

local function read_integer(tvb, at, form)
  local length, signed = form[1], form[2]
  need(tvb, at, 1 + length)
  local content = tvb(at + 1, length)
  local negative = signed and tvb(at + 1, 1):uint() >= 0x80
  if negative then return plain(tvb, "negative", nil, at, 1 + length) end
  local value = content:uint64()
  return plain(tvb, "integer", value, at, 1 + length)
end

read = function(tvb, at, depth)
  need(tvb, at, 1)
  local first = tvb(at, 1):uint()
  if first < 0x80 then return plain(tvb, "integer", UInt64.new(first, 0), at, 1) end
  if first >= 0xe0 then return plain(tvb, "negative", nil, at, 1) end
  if first >= 0x90 and first < 0xa0 then return read_array(tvb, at, at + 1, first - 0x90, depth) end
  if first >= 0xa0 and first < 0xc0 then return content_of(tvb, "str", at, 1, first - 0xa0) end
  if first == 0xc0 then return plain(tvb, "nil", nil, at, 1) end
  if first == 0xc2 or first == 0xc3 then return plain(tvb, "boolean", first == 0xc3, at, 1) end
  if first == 0xca or first == 0xcb then
    local length = first == 0xca and 4 or 8
    need(tvb, at, 1 + length)
    return plain(tvb, "float", tvb(at + 1, length):float(), at, 1 + length)
  end
  if INTEGERS[first] then return read_integer(tvb, at, INTEGERS[first]) end
  local form = LENGTHS[first]
  if form == nil then fail(tvb, at, "a map or an extension") end
  need(tvb, at, 1 + form[2])
  local length = tvb(at + 1, form[2]):uint()
  if form[1] == "array" then return read_array(tvb, at, at + 1 + form[2], length, depth) end
  return content_of(tvb, form[1], at, 1 + form[2], length)
end

-- Checked values --------------------------------------------------------------------------

local function must(tvb, condition, value, message)
  if not condition then fail(tvb, value.first, message) end
end

local function integer(tvb, value, largest)
  must(tvb, value.kind == "integer", value, "a number that is none, or out of range")
  if largest ~= nil then
    must(tvb, value.value <= UInt64.new(largest, 0), value, "a number out of range")
    return value.value:tonumber()
  end
  return value.value
end

local function array(tvb, value, most)
  must(tvb, value.kind == "array", value, "an array that is none")
  must(tvb, #value.items <= (most or ELEMENTS_MAX), value, "an array that is too long")
  return value.items
end

local function bytes(tvb, value, length)
  must(tvb, value.kind == "bin", value, "bytes that are none")
  must(tvb, length == nil or value.length == length, value, "bytes of a wrong length")
  return value.content, value.length
end

local function name(tvb, value, most)
  must(tvb, value.kind == "str" and value.length > 0 and value.length <= most
    and not value.value:find("[^\32-\126]"), value, "a name that is none")
  return value.value
end

-- Adds an integer, which is a UInt64 unless there is a largest value.
local function add_integer(tvb, tree, field, value, largest)
  local number = integer(tvb, value, largest)
  return number, tree:add(field, value.range, number)
end

local function add_boolean(tvb, tree, field, value)
  must(tvb, value.kind == "boolean", value, "a truth that is neither true nor false")
  tree:add(field, value.range, value.value)
  return value.value
end

local function add_name(tvb, tree, field, value, most)
  local text = name(tvb, value, most or 63)
  tree:add(field, value.range, text)
  return text
end

local function add_content(tvb, tree, field, value, length)
  local at, found = bytes(tvb, value, length)
  must(tvb, found > 0, value, "bytes of a wrong length")
  return tree:add(field, tvb(at, found))
end

-- Connections -----------------------------------------------------------------------------

local function label_of(table_, number) return table_[number] or tostring(number) end

local function state_name(protocol, template, state)
  local names = template and TEMPLATE_STATES or STATES[protocol] or {}
  return names[state]
end

local function add_address(tree, field4, field6, range)
  if range:len() == 4 then
    tree:add(field4, range)
    return tostring(range:ipv4())
  end
  tree:add(field6, range)
  return "[" .. tostring(range:ipv6()) .. "]"
end

local function family_of(tvb, at)
  local kind = tvb(at, 1):uint()
  local template = kind >= 0x80
  local family = template and kind - 0x80 or kind
  if family ~= 4 and family ~= 6 then fail(tvb, at, "a family that is none") end
  return family, template, family == 4 and 4 or 16
end

-- Adds the parts of a key, of which each has a range of its own: where it stands in the datagram.
local function add_key(tree, part)
  tree:add(f["key.family"], part.kind, part.family)
  tree:add(f["key.template"], part.kind, part.template)
  tree:add(f["key.protocol"], part.protocol)
  local client = add_address(tree, f["key.client"], f["key.client6"], part.client)
  tree:add(f["key.client_port"], part.client_port)
  local virtual = add_address(tree, f["key.virtual"], f["key.virtual6"], part.virtual)
  tree:add(f["key.virtual_port"], part.virtual_port)
  if not part.template then
    -- Byte 5 of the key is the fourth of the client's address, of either family.
    local bucket = part.client_port(1, 1):uint() + part.client(3, 1):uint()
    tree:add(f["bucket"], part.client, bucket):set_generated()
  end
  local protocol = part.protocol:uint()
  tree:append_text(string.format(
    ": %s%s %s:%d to %s:%d", part.template and "template " or "", label_of(PROTOCOLS, protocol),
    client, part.client_port:uint(), virtual, part.virtual_port:uint()))
  return protocol
end

-- Reads a whole key, and says where its parts are.
local function key_parts(tvb, value)
  local at, length = bytes(tvb, value)
  must(tvb, length > 0, value, "a key that is none")
  local family, template, size = family_of(tvb, at)
  local least = 6 + 2 * size
  must(tvb, length == least or (template and length > least and length <= least + FOUND_BYTES_MAX), value,
    "a key of a wrong length")
  local part = {
    kind = tvb(at, 1), family = family, template = template, protocol = tvb(at + 1, 1),
    client = tvb(at + 2, size), virtual = tvb(at + 2 + size, size),
    client_port = tvb(at + 2 + 2 * size, 2), virtual_port = tvb(at + 4 + 2 * size, 2),
  }
  if length > least then part.found = tvb(at + least, length - least) end
  return part, tvb(at, length)
end

local function add_whole_key(tvb, tree, field, value)
  local part, range = key_parts(tvb, value)
  local item = tree:add(field, range)
  if field ~= f["key"] then item:add(f["key"], range) end
  local protocol = add_key(item, part)
  if part.found then item:add(f["key.found"], part.found) end
  return item, part, protocol
end

local function add_flags(tree, range, flags)
  local item = tree:add(f["flags"], range, flags)
  for _, flag in ipairs(FLAGS) do item:add(f["flags." .. flag[1]], range, flags) end
end

local function add_state(tree, range, protocol, template)
  local state = range:uint()
  local known = state_name(protocol, template, state)
  local item = tree:add(f["connection.state"], range)
  if known then
    item:append_text(" (" .. known .. ")")
    tree:add(f["connection.state_name"], range, known):set_generated()
  end
  tree:append_text(", " .. (known or ("state " .. state)))
end

local function add_shifts(tvb, tree, at)
  for number, shift in ipairs(SHIFTS) do
    tree:add(f["shift." .. shift], tvb(at + 4 * (number - 1), 4))
  end
end

local function add_detail(tvb, tree, number, value, template)
  local at, length = bytes(tvb, value)
  must(tvb, length > 0, value, "a field of a wrong length")
  local range = tvb(at, length)
  if number == 1 then
    must(tvb, length == 4, value, "a firewall mark of a wrong length")
    tree:add(f["mark"], range)
  elseif number == 2 then
    must(tvb, length == 24, value, "shifts of a wrong length")
    add_shifts(tvb, tree, at)
  elseif number == 3 then
    must(tvb, template and length <= FOUND_BYTES_MAX, value,
      "what an engine found, of no template or too long")
    tree:add(f["key.found"], range)
  elseif number == 4 then
    must(tvb, length <= 16 and not range:raw():find("[^%w]"), value, "an engine that is none")
    tree:add(f["engine"], range)
  elseif number == 5 then
    key_parts(tvb, value)
    tree:add(f["parent"], range)
  elseif number == 6 then
    must(tvb, length == 1 or length == 6, value, "an FTP dialogue of a wrong length")
    tree:add(f["dialogue.mode"], tvb(at, 1))
    if length == 6 then
      tree:add(f["dialogue.answered"], tvb(at + 1, 4))
      tree:add(f["dialogue.answered_mode"], tvb(at + 5, 1))
    end
  else
    tree:add(f["other"], value.range, number):add(f["other.value"], range)
  end
end

local function add_details(tvb, list, trees, template)
  local last = -1
  for _, details in ipairs(array(tvb, list)) do
    local fields = array(tvb, details, 1 + 2 * FIELDS_MAX)
    must(tvb, #fields % 2 == 1, details, "details of no entry")
    local index = integer(tvb, fields[1], 65535)
    must(tvb, index > last and index < #trees, fields[1], "details of no entry")
    last = index
    local total = 0
    for place = 2, #fields, 2 do
      local number = integer(tvb, fields[place], 65535)
      must(tvb, number > 0, fields[place], "a field with a number that is none")
      local _, length = bytes(tvb, fields[place + 1])
      total = total + DETAIL_BYTES + length
      must(tvb, total <= DETAILS_BYTES_MAX, details, "details that are too long")
      add_detail(tvb, trees[index + 1], number, fields[place + 1], template)
    end
  end
end

-- One group; returns how many connections it has.
local function add_group(tvb, tree, group)
  local fields = array(tvb, group)
  must(tvb, #fields >= 2, group, "a group without its entries")
  local ends, ends_length = bytes(tvb, fields[1])
  local at, length = bytes(tvb, fields[2])
  must(tvb, ends_length >= 7, fields[1], "a group whose ends are cut short")
  local family, template, size = family_of(tvb, ends)
  local server_size = ends_length - 7 - size
  local method = tvb(ends + 2, 1):uint()
  must(tvb, METHODS[method] ~= nil and method ~= 1, fields[1], "a method that is none")
  must(tvb, server_size == size or (method == 2 and (server_size == 4 or server_size == 16)),
    fields[1], "a group whose server has a wrong address")
  local step = size + 9
  must(tvb, length % step == 0, fields[2], "a group of cut entries")
  local count = length / step
  local item = tree:add(f["group"], group.range)
  item:set_text(string.format("Group of %d", count))
  local server, server_port = tvb(ends + 7 + size, server_size), tvb(ends + 5, 2)
  local trees = {}
  for number = 0, count - 1 do
    local entry = at + number * step
    local one = item:add(f["connection"], tvb(entry, step))
    trees[number + 1] = one
    local protocol = add_key(one, {
      kind = tvb(ends, 1), family = family, template = template, protocol = tvb(ends + 1, 1),
      client = tvb(entry, size), client_port = tvb(entry + size, 2),
      virtual = tvb(ends + 7, size), virtual_port = tvb(ends + 3, 2),
    })
    local address = add_address(one, f["server"], f["server6"], server)
    one:add(f["server_port"], server_port)
    one:add(f["method"], tvb(ends + 2, 1))
    one:append_text(string.format(
      ", %s to %s:%d", label_of(METHODS, method), address, server_port:uint()))
    add_state(one, tvb(entry + size + 2, 1), protocol, template)
    add_flags(one, tvb(entry + size + 3, 2), tvb(entry + size + 3, 2):uint())
    one:add(f["timeout"], tvb(entry + size + 5, 4), tvb(entry + size + 5, 4):uint() / 100)
  end
  if #fields > 2 then add_details(tvb, fields[3], trees, template) end
  return count
end

local function add_groups(tvb, tree, value)
  local count = 0
  for _, group in ipairs(array(tvb, value)) do count = count + add_group(tvb, tree, group) end
  return count
end

local function add_ended_groups(tvb, tree, value)
  local total = 0
  for _, group in ipairs(array(tvb, value)) do
    local fields = array(tvb, group)
    must(tvb, #fields >= 2, group, "a group without its entries")
    local ends, ends_length = bytes(tvb, fields[1])
    local at, length = bytes(tvb, fields[2])
    must(tvb, ends_length > 0, fields[1], "a group of what ended that cannot be")
    local family, template, size = family_of(tvb, ends)
    local step = size + 2
    must(tvb, ends_length == 4 + size and length % step == 0, group,
      "a group of what ended that cannot be")
    for entry = at, at + length - step, step do
      add_key(tree:add(f["ended"], tvb(entry, step)), {
        kind = tvb(ends, 1), family = family, template = template, protocol = tvb(ends + 1, 1),
        client = tvb(entry, size), client_port = tvb(entry + size, 2),
        virtual = tvb(ends + 4, size), virtual_port = tvb(ends + 2, 2),
      })
      total = total + 1
    end
  end
  return total
end

local function add_keys(tvb, tree, field, value, most)
  local keys = array(tvb, value, most)
  for _, key in ipairs(keys) do add_whole_key(tvb, tree, field, key) end
  return #keys
end

-- A connection as level 1 has it.
local function add_record(tvb, tree, record)
  local fields = array(tvb, record)
  must(tvb, #fields >= 7, record, "a record that is not an array of all its fields")
  local item, part, protocol = add_whole_key(tvb, tree, f["connection"], fields[1])
  must(tvb, not part.template, fields[1], "a template in level 1")
  local at, length = bytes(tvb, fields[2])
  must(tvb, length == 4 or length == 16, fields[2], "a record whose server has a wrong address")
  local address = add_address(item, f["server"], f["server6"], tvb(at, length))
  local port = add_integer(tvb, item, f["server_port"], fields[3], 65535)
  local method = add_integer(tvb, item, f["method"], fields[4], 255)
  must(tvb, METHODS[method] ~= nil and method ~= 1, fields[4], "a method that is none")
  must(tvb, length == part.client:len() or method == 2, fields[2],
    "a record whose server has a wrong address")
  item:append_text(string.format(", %s to %s:%d", label_of(METHODS, method), address, port))
  local state, shown = add_integer(tvb, item, f["connection.state"], fields[5], 255)
  local known = state_name(protocol, false, state)
  if known then
    shown:append_text(" (" .. known .. ")")
    item:add(f["connection.state_name"], fields[5].range, known):set_generated()
  end
  item:append_text(", " .. (known or ("state " .. state)))
  add_flags(item, fields[6].range, integer(tvb, fields[6], 4294967295))
  local timeout = fields[7]
  must(tvb, timeout.kind == "integer" or timeout.kind == "float", timeout, "a time-out that is none")
  local seconds = timeout.kind == "float" and timeout.value or integer(tvb, timeout, 31622400)
  must(tvb, seconds >= 0 and seconds <= 31622400, timeout, "a time-out out of range")
  item:add(f["timeout"], timeout.range, seconds)
end

local function add_entries(tvb, tree, value, with_ended)
  local records, ended = 0, 0
  for _, entry in ipairs(array(tvb, value)) do
    if entry.kind == "array" then
      add_record(tvb, tree, entry)
      records = records + 1
    else
      must(tvb, with_ended, entry, "the end of a connection in a snapshot")
      local _, part = add_whole_key(tvb, tree, f["ended"], entry)
      must(tvb, not part.template, entry, "a template in level 1")
      ended = ended + 1
    end
  end
  return records, ended
end

-- Messages --------------------------------------------------------------------------------

local function add_buckets(tvb, tree, value)
  local item = add_content(tvb, tree, f["buckets"], value, 64)
  local count = 0
  for bucket = 0, BUCKETS - 1 do
    local range = tvb(value.content + 63 - math.floor(bucket / 8), 1)
    if math.floor(range:uint() / 2 ^ (bucket % 8)) % 2 == 1 then
      item:add(f["bucket"], range, bucket)
      count = count + 1
    end
  end
  item:append_text(string.format(" (%d of %d)", count, BUCKETS))
  return count
end

local function add_addressed(tvb, tree, body)
  local leader = add_name(tvb, tree, f["leader"], body[7])
  add_integer(tvb, tree, f["leader_epoch"], body[8])
  return leader
end

local STANDING = {
  "told", "total", "current", "established", "exposed", "missing", "wanted", "mismatched",
  "lost", "repaired",
}

local function heartbeat(tvb, tree, body)
  add_integer(tvb, tree, f["connections"], body[7])
  add_content(tvb, tree, f["digest"], body[8], 16)
  local leader = body[9]
  if leader.kind == "str" and leader.length == 0 then
    tree:add(f["leader"], leader.range, "")
  else
    add_name(tvb, tree, f["leader"], leader)
  end
  local state = add_integer(tvb, tree, f["state"], body[10], 2)
  add_integer(tvb, tree, f["position"], body[11])
  add_boolean(tvb, tree, f["complete"], body[12])
  local text = leader.value == "" and "follows nobody"
    or string.format("follows %s, %s", leader.value, PEER_STATES[state])
  if #body < 17 then return text end
  add_integer(tvb, tree, f["level"], body[13], 255)
  add_integer(tvb, tree, f["speaks"], body[14], 255)
  add_integer(tvb, tree, f["oldest"], body[15])
  for _, epoch in ipairs(array(tvb, body[16], 16)) do
    add_integer(tvb, tree, f["heard"], epoch)
  end
  local standing = array(tvb, body[17])
  must(tvb, #standing >= #STANDING, body[17], "a standing with too few fields")
  for number, field in ipairs(STANDING) do
    local add = field == "current" and add_boolean or add_integer
    add(tvb, tree, f["standing." .. field], standing[number])
  end
  if #body > 17 and body[18].kind == "array" then
    local duty = array(tvb, body[18])
    must(tvb, #duty >= 3, body[18], "a duty with too few fields")
    add_integer(tvb, tree, f["duty.state"], duty[1], 3)
    add_integer(tvb, tree, f["duty.witness"], duty[2], 3)
    add_integer(tvb, tree, f["duty.priority"], duty[3], 255)
  end
  return text
end

local function told(records, ended)
  return string.format("%d told, %d ended", records, ended)
end

local function snapshot_request(tvb, tree, body)
  local text = "to " .. add_addressed(tvb, tree, body)
  add_integer(tvb, tree, f["position"], body[9])
  if #body > 9 then
    text = text .. string.format(", %d buckets", add_buckets(tvb, tree, body[10]))
  end
  return text
end

local function snapshot_end(tvb, tree, body)
  add_integer(tvb, tree, f["begin"], body[7])
  return tostring(add_integer(tvb, tree, f["count"], body[8])) .. " connections"
end

local function configuration(tvb, tree, body)
  add_content(tvb, tree, f["digest"], body[7], 16)
  local part = add_integer(tvb, tree, f["part"], body[8], 4095)
  local parts = add_integer(tvb, tree, f["parts"], body[9], 4096)
  must(tvb, part < parts, body[8], "a part of a configuration that cannot be")
  for _, piece in ipairs(array(tvb, body[10])) do
    local fields = array(tvb, piece)
    must(tvb, #fields >= 2, piece, "a piece without its digest")
    name(tvb, fields[1], 127)
    local item = tree:add(f["piece"], fields[1].range, fields[1].value)
    local _, length = bytes(tvb, fields[2])
    must(tvb, length <= 32, fields[2], "a digest of a wrong length")
    add_content(tvb, item, f["piece.digest"], fields[2])
  end
  return string.format("part %d of %d", part, parts)
end

local function gap_request(tvb, tree, body)
  local text = "to " .. add_addressed(tvb, tree, body)
  for number, range in ipairs(array(tvb, body[9], 20)) do
    local fields = array(tvb, range)
    must(tvb, #fields >= 2, range, "a range that is not two numbers")
    local first = add_integer(tvb, tree, f["range.first"], fields[1])
    local count = add_integer(tvb, tree, f["range.count"], fields[2], 4294967295)
    text = text .. string.format("%s%s+%d", number == 1 and ": " or ", ", tostring(first), count)
  end
  return text
end

local function sums(tvb, tree, body)
  local first = add_integer(tvb, tree, f["first"], body[7], BUCKETS)
  local at, length = bytes(tvb, body[8])
  must(tvb, length > 0 and length % 8 == 0, body[8], "sums that are cut short")
  must(tvb, length / 8 <= 128 and first + length / 8 <= BUCKETS, body[8],
    "sums of more buckets than there are")
  for number = 0, length / 8 - 1 do
    local range = tvb(at + 8 * number, 8)
    tree:add(f["sum"], range):append_text(string.format(" (bucket %d)", first + number))
  end
  if body[9] then add_boolean(tvb, tree, f["sums.current"], body[9]) end
  return string.format("buckets %d to %d", first, first + length / 8 - 1)
end

-- By type: elements behind the first six that are needed, those that are known, and who reads them.
local READERS = {
  [1] = { 6, 12, heartbeat },
  [2] = { 1, 1, function(tvb, tree, body) return told(add_entries(tvb, tree, body[7], true)) end },
  [3] = { 3, 4, snapshot_request },
  [4] = { 0, 0, function() return "of everything" end },
  [5] = { 2, 2, function(tvb, tree, body)
    add_integer(tvb, tree, f["begin"], body[7])
    return told(add_entries(tvb, tree, body[8], false))
  end },
  [6] = { 2, 2, snapshot_end },
  [7] = { 4, 4, configuration },
  [8] = { 3, 3, gap_request },
  [9] = { 2, 3, sums },
  [10] = { 3, 3, function(tvb, tree, body)
    local node = add_name(tvb, tree, f["node"], body[7])
    add_integer(tvb, tree, f["node_epoch"], body[8])
    add_integer(tvb, tree, f["moment"], body[9])
    return "to " .. node
  end },
  [12] = { 3, 3, function(tvb, tree, body)
    local records = add_groups(tvb, tree, body[7])
    local ended = add_ended_groups(tvb, tree, body[8])
    return told(records, ended + add_keys(tvb, tree, f["ended"], body[9]))
  end },
  [13] = { 1, 1, function(tvb, tree, body)
    return string.format("%d buckets", add_buckets(tvb, tree, body[7]))
  end },
  [14] = { 2, 2, function(tvb, tree, body)
    add_integer(tvb, tree, f["begin"], body[7])
    return told(add_groups(tvb, tree, body[8]), 0)
  end },
  [15] = { 2, 2, snapshot_end },
  [16] = { 2, 2, function(tvb, tree, body) return "to " .. add_addressed(tvb, tree, body) end },
  [17] = { 3, 3, function(tvb, tree, body)
    local leader = add_addressed(tvb, tree, body)
    return string.format(
      "to %s: %s", leader, tostring(add_integer(tvb, tree, f["position"], body[9])))
  end },
  [18] = { 1, 1, function(tvb, tree, body)
    return string.format("%d keys", add_keys(tvb, tree, f["key"], body[7], 32))
  end },
  [19] = { 3, 3, function(tvb, tree, body)
    local asker = add_name(tvb, tree, f["asker"], body[7])
    local known = add_groups(tvb, tree, body[8])
    local unknown = add_keys(tvb, tree, f["key"], body[9], 32)
    return string.format("to %s: %d known, %d not", asker, known, unknown)
  end },
  [20] = { 5, 5, function(tvb, tree, body)
    add_integer(tvb, tree, f["opinions.list"], body[7])
    local part = add_integer(tvb, tree, f["part"], body[8], 4095)
    local parts = add_integer(tvb, tree, f["parts"], body[9], 4096)
    must(tvb, part < parts, body[8], "a part of a list of opinions that cannot be")
    local checked = add_integer(tvb, tree, f["opinions.checked"], body[10], 4294967295)
    local opinions = array(tvb, body[11], 4096)
    for _, opinion in ipairs(opinions) do
      local fields = array(tvb, opinion)
      must(tvb, #fields >= 4, opinion, "an opinion of no service or server")
      add_name(tvb, tree, f["opinions.service"], fields[1], 127)
      local at, length = bytes(tvb, fields[2])
      must(tvb, length == 4 or length == 16, fields[2], "an opinion of a server with a wrong address")
      add_address(tree, f["server"], f["server6"], tvb(at, length))
      add_integer(tvb, tree, f["server_port"], fields[3], 65535)
      add_integer(tvb, tree, f["opinions.opinion"], fields[4], 1)
    end
    return string.format("%d of %d servers are not up", #opinions, checked)
  end },
}

local function dissect_body(tvb, pinfo, tree)
  local value = read(tvb, 4, 0)
  if value.stop ~= tvb:len() then fail(tvb, value.stop, "bytes behind the body") end
  must(tvb, value.kind == "array" and #value.items >= 6, value,
    "a body that is not an array of a head and fields")
  local body = value.items
  local kind = add_integer(tvb, tree, f["type"], body[1], 255)
  local node = add_name(tvb, tree, f["node"], body[2])
  add_integer(tvb, tree, f["epoch"], body[3])
  local role = add_integer(tvb, tree, f["role"], body[4], 3)
  must(tvb, role >= 1, body[4], "a role out of range")
  local term = add_integer(tvb, tree, f["term"], body[5], 4294967295)
  local sequence = add_integer(tvb, tree, f["sequence"], body[6])
  local title = string.format("%s, %s, %s of term %d, number %s",
    TYPES[kind] or ("type " .. kind), node, ROLES[role], term, tostring(sequence))
  tree:append_text(": " .. title)
  pinfo.cols.info:set(title)
  local reader = READERS[kind]
  if reader == nil then
    tree:add_proto_expert_info(reserved)
    return
  end
  must(tvb, #body >= 6 + reader[1], value, "a message with too few fields")
  local text = reader[3](tvb, tree, body)
  if text ~= "" then pinfo.cols.info:append(": " .. text) end
  if #body > 6 + reader[2] then
    local first = body[7 + reader[2]].first
    tree:add(f["more"], tvb(first, tvb:len() - first))
  end
end

local function dissect_sealed(tvb, pinfo, tree)
  if tvb:len() < 37 then fail(tvb, 0, "a sealed datagram that was cut short") end
  tree:add(f["sealed.key_id"], tvb(4, 1))
  tree:add(f["sealed.session"], tvb(5, 8))
  tree:add(f["sealed.counter"], tvb(13, 6))
  tree:add(f["sealed.text"], tvb(19, tvb:len() - 35))
  tree:add(f["sealed.tag"], tvb(tvb:len() - 16, 16))
  local title = string.format("sealed, key 0x%02x, session %s, counter %s", tvb(4, 1):uint(),
    tvb(5, 8):bytes():tohex(true), tostring(tvb(13, 6):uint64()))
  tree:append_text(": " .. title)
  pinfo.cols.info:set(title)
end

local function dissect_lvsha(tvb, pinfo, root)
  pinfo.cols.protocol:set("lvsha")
  pinfo.cols.info:set("")
  local tree = root:add(lvsha, tvb())
  tree:add(f["version"], tvb(0, 1))
  tree:add(f["sync_id"], tvb(1, 1))
  local version = tvb(0, 1):uint()
  local well, trouble = pcall(function()
    if version == 1 then
      dissect_body(tvb, pinfo, tree)
    elseif version == 2 then
      dissect_sealed(tvb, pinfo, tree)
    else
      fail(tvb, 0, "a version that is not known")
    end
  end)
  if not well then
    -- What this script did not foresee is a message without a place.
    local message = type(trouble) == "table" and trouble.message or tostring(trouble)
    local at = type(trouble) == "table" and trouble.at or 0
    tree:add_tvb_expert_info(malformed, tvb(at, 1), message)
    pinfo.cols.info:append(" [malformed: " .. message .. "]")
  end
  return tvb:len()
end

-- The kernel's protocol -------------------------------------------------------------------

local k = {}

do
  local gathered = {}
  local holder = { fields = gathered }
  local function add(make, name, title, ...) define(k, holder, "ipvs_sync", make, name, title, ...) end
  local u8, u16, u32 = ProtoField.uint8, ProtoField.uint16, ProtoField.uint32
  add(u8, "version", "Version")
  add(u8, "count", "Records")
  add(u8, "sync_id", "Sync id")
  add(u16, "size", "Size")
  add(ProtoField.none, "record", "Record")
  add(u8, "record.type", "Type", base.HEX)
  add(u8, "record.version", "Record version")
  add(u16, "record.size", "Record size")
  add(u8, "protocol", "Protocol", base.DEC, PROTOCOLS)
  add(ProtoField.ipv4, "client", "Client")
  add(ProtoField.ipv6, "client6", "Client")
  add(u16, "client_port", "Client port")
  add(ProtoField.ipv4, "virtual", "Virtual address")
  add(ProtoField.ipv6, "virtual6", "Virtual address")
  add(u16, "virtual_port", "Virtual port")
  add(ProtoField.ipv4, "server", "Real server")
  add(ProtoField.ipv6, "server6", "Real server")
  add(u16, "server_port", "Real server's port")
  add(u8, "method", "Forwarding method", base.DEC, METHODS)
  add(u32, "flags", "Flags", base.HEX)
  for _, flag in ipairs(FLAGS) do
    add(ProtoField.bool, "flags." .. flag[1], "Flag: " .. flag[2], 32, nil, flag[3])
  end
  add(u16, "state", "State")
  add(ProtoField.string, "state_name", "State")
  add(u32, "mark", "Firewall mark", base.HEX)
  add(u32, "timeout", "Time-out (s)")
  for _, name in ipairs(SHIFTS) do add(u32, "shift." .. name, "Shift: " .. name) end
  add(ProtoField.bytes, "shifts", "Shifts, in the sender's byte order")
  add(ProtoField.bytes, "engine_data", "Found by the persistence engine")
  add(ProtoField.string, "engine", "Persistence engine")
  add(u8, "option", "Option of an unknown type")
  kernel.fields = gathered
end

local kernel_malformed = ProtoExpert.new(
  "ipvs_sync.malformed", "Malformed sync datagram", expert.group.MALFORMED, expert.severity.ERROR)
kernel.experts = { kernel_malformed }

local function kernel_flags(tree, range)
  local flags = range:uint()
  local item = tree:add(k["flags"], range, flags)
  for _, flag in ipairs(FLAGS) do item:add(k["flags." .. flag[1]], range, flags) end
  tree:add(k["method"], range, flags % 8)
  return flags
end

local function is_set(flags, bit) return math.floor(flags / bit) % 2 == 1 end

local function kernel_ends(tree, tvb, ports, addresses, size)
  tree:add(k["client_port"], tvb(ports, 2))
  tree:add(k["virtual_port"], tvb(ports + 2, 2))
  tree:add(k["server_port"], tvb(ports + 4, 2))
  local client = add_address(tree, k["client"], k["client6"], tvb(addresses, size))
  local virtual = add_address(tree, k["virtual"], k["virtual6"], tvb(addresses + size, size))
  local server = add_address(tree, k["server"], k["server6"], tvb(addresses + 2 * size, size))
  tree:append_text(string.format(": %s:%d to %s:%d, server %s:%d", client, tvb(ports, 2):uint(),
    virtual, tvb(ports + 2, 2):uint(), server, tvb(ports + 4, 2):uint()))
end

local function kernel_state(tree, range, protocol, flags)
  local known = state_name(protocol, is_set(flags, 0x1000), range:uint())
  tree:add(k["state"], range)
  if known then tree:add(k["state_name"], range, known):set_generated() end
end

local function kernel_option(tvb, tree, kind, at, length)
  local plain_kind = kind >= 0x40 and kind - 0x40 or kind
  if plain_kind == 1 and length == 24 then
    for number, shift in ipairs(SHIFTS) do
      tree:add(k["shift." .. shift], tvb(at + 4 * (number - 1), 4))
    end
  elseif plain_kind == 2 and length > 0 then
    tree:add(k["engine_data"], tvb(at, length))
  elseif plain_kind == 3 and length > 0 and length <= 16 then
    tree:add(k["engine"], tvb(at, length))
  else
    tree:add(k["option"], tvb(at - 2, length + 2), kind)
  end
end

local function kernel_record_v1(tvb, tree, at)
  need(tvb, at, 4)
  local six = tvb(at, 1):uint() % 2 == 1
  local size = tvb(at + 2, 2):uint() % 4096
  local address = six and 16 or 4
  local fixed = 24 + 3 * address
  if size < fixed then fail(tvb, at, "a record that is too short") end
  need(tvb, at, size)
  local item = tree:add(k["record"], tvb(at, size))
  item:add(k["record.type"], tvb(at, 1))
  item:add(k["record.version"], tvb(at + 2, 1), math.floor(tvb(at + 2, 1):uint() / 16))
  item:add(k["record.size"], tvb(at + 2, 2), size)
  item:add(k["protocol"], tvb(at + 1, 1))
  kernel_ends(item, tvb, at + 10, at + 24, address)
  local flags = kernel_flags(item, tvb(at + 4, 4))
  kernel_state(item, tvb(at + 8, 2), tvb(at + 1, 1):uint(), flags)
  item:add(k["mark"], tvb(at + 16, 4))
  item:add(k["timeout"], tvb(at + 20, 4))
  local option, stop = at + fixed, at + size
  while option < stop do
    if option + 2 > stop then fail(tvb, option, "an option that is cut short") end
    local length = tvb(option + 1, 1):uint()
    if option + 2 + length > stop then fail(tvb, option, "an option that is cut short") end
    kernel_option(tvb, item, tvb(option, 1):uint(), option + 2, length)
    option = option + 2 + length
  end
  return stop
end

local function kernel_v1(tvb, tree)
  local at, count = 8, tvb(4, 1):uint()
  tree:add(k["count"], tvb(4, 1))
  for _ = 1, count do
    -- Records begin at multiples of four.
    at = kernel_record_v1(tvb, tree, math.ceil(at / 4) * 4)
  end
  return count
end

local function kernel_v0(tvb, tree)
  local at, count = 4, tvb(0, 1):uint()
  tree:add(k["count"], tvb(0, 1))
  for _ = 1, count do
    need(tvb, at, 24)
    local flags = tvb(at + 20, 2):uint()
    local shifted = is_set(flags, 0x200) or is_set(flags, 0x400)
    local size = shifted and 48 or 24
    need(tvb, at, size)
    local item = tree:add(k["record"], tvb(at, size))
    item:add(k["protocol"], tvb(at + 1, 1))
    kernel_ends(item, tvb, at + 2, at + 8, 4)
    kernel_flags(item, tvb(at + 20, 2))
    kernel_state(item, tvb(at + 22, 2), tvb(at + 1, 1):uint(), flags)
    if shifted then item:add(k["shifts"], tvb(at + 24, 24)) end
    at = at + size
  end
  return count
end

local function dissect_kernel(tvb, pinfo, root)
  pinfo.cols.protocol:set("IPVS sync")
  pinfo.cols.info:set("")
  local tree = root:add(kernel, tvb())
  local well, trouble = pcall(function()
    need(tvb, 0, 4)
    tree:add(k["sync_id"], tvb(1, 1))
    tree:add(k["size"], tvb(2, 2))
    local is_v1 = tvb:len() >= 8 and tvb(0, 1):uint() == 0 and tvb(5, 1):uint() == 1
    tree:add(k["version"], is_v1 and tvb(5, 1) or tvb(0, 1), is_v1 and 1 or 0)
    if tvb(2, 2):uint() ~= tvb:len() then fail(tvb, 2, "a size that is not that of the datagram") end
    local count = (is_v1 and kernel_v1 or kernel_v0)(tvb, tree)
    pinfo.cols.info:set(string.format(
      "version %d, sync id %d: %d records", is_v1 and 1 or 0, tvb(1, 1):uint(), count))
  end)
  if not well then
    local message = type(trouble) == "table" and trouble.message or tostring(trouble)
    local at = type(trouble) == "table" and trouble.at or 0
    tree:add_tvb_expert_info(kernel_malformed, tvb(at, 1), message)
    pinfo.cols.info:append(" [malformed: " .. message .. "]")
  end
  return tvb:len()
end

-- Which of them ---------------------------------------------------------------------------

local function is_lvsha(tvb) return tvb:len() > 4 and tvb(2, 2):uint() == 0xffff end

function lvsha.dissector(tvb, pinfo, root)
  if tvb:len() == 0 then return 0 end
  return (is_lvsha(tvb) and dissect_lvsha or dissect_kernel)(tvb, pinfo, root)
end

function kernel.dissector(tvb, pinfo, root)
  return dissect_kernel(tvb, pinfo, root)
end

-- On other ports only what can hardly be anything else: the head, and an array or a seal.
local function guess(tvb, pinfo, root)
  if tvb:len() < 12 or not is_lvsha(tvb) then return false end
  local version, fifth = tvb(0, 1):uint(), tvb(4, 1):uint()
  local is_body = version == 1 and ((fifth >= 0x96 and fifth < 0xa0) or fifth == 0xdc)
  if not is_body and not (version == 2 and tvb:len() >= 37) then return false end
  dissect_lvsha(tvb, pinfo, root)
  return true
end

lvsha:register_heuristic("udp", guess)
DissectorTable.get("udp.port"):add(PORT, lvsha)
