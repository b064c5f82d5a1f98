-- Adds requests, all or none.
--
-- ARGV[4], [5], [6]  whether there is a bookmark ('1' or '0'), its source, its value
-- ARGV[7], [8]       the most requests and payload bytes held, decimal
-- ARGV[9]            when the keys of this push are forgotten
-- ARGV[10]           the name under which the payloads were staged, or empty if they follow
-- ARGV[11...]        for each request its head and, unless staged, its payload. A head is: due (or
--                    zeros) 16, expires 16, size 8, whether it has a key 1 ('1' or '0'), digests of the key
--                    and of the payload 32 each (only with a key), attributes
-- Returns            'ok', then for each request its id and '1' for a duplicate or '0', 17 characters
--                    | 'full', requests held, bytes held | 'conflict', which request, id | 'unstaged'
-- O(n log N) for n requests
local stage, width = ARGV[10], ARGV[10] == '' and 2 or 1
local count = (#ARGV - 10) / width
local known, last, bytes, added = {}, state.last, 0, 0
local ids, replies, past = {}, {}, {}

local function unpack_head(head)
  if sub(head, 41, 41) == '0' then return nil, nil, sub(head, 42) end
  return sub(head, 42, 73), sub(head, 74, 105), sub(head, 106)
end

local function find_key(key)
  if known[key] then return known[key] end
  local value = known_key(key)
  if value and sub(value, 49, 64) <= NOW then
    past[#past + 1] = value
    return nil
  end
  return value
end

if stage ~= '' then
  for from = 0, count - 1, CHUNK do
    local names = {}
    for i = from, math.min(from + CHUNK, count) - 1 do names[#names + 1] = PREFIX .. 'stage:' .. stage .. ':' .. i end
    if call('EXISTS', unpack(names)) ~= #names then return refuse('unstaged') end
  end
end

for i = 1, count do
  local head = ARGV[10 + (i - 1) * width + 1]
  local key, digest = unpack_head(head)
  local found = key and find_key(key)
  if found and sub(found, 65) ~= digest then
    state.last = last
    return refuse('conflict', decimal(i - 1), sub(found, 33, 48))
  elseif found then
    replies[i] = sub(found, 33, 48) .. '1'
  else
    local id = tail()
    ids[i], replies[i] = id, id .. '0'
    added, bytes = added + 1, bytes + number(sub(head, 33, 40))
    if key then known[key] = key .. id .. ARGV[9] .. digest end
  end
end
local over, held = over_bounds(added, bytes, ARGV[7], ARGV[8])
if over then
  state.last = last
  return refuse('full', decimal(held), decimal(state.held_bytes))
end

for _, value in ipairs(past) do remove('keys', value) end
for key, value in pairs(known) do
  add('keys', value)
  add('keyed', ARGV[9] .. key)
end
for i = 1, count do
  local id, staged = ids[i], PREFIX .. 'stage:' .. stage .. ':' .. (i - 1)
  if id then
    local head = ARGV[10 + (i - 1) * width + 1]
    local _, _, attributes = unpack_head(head)
    local due, expires, size = sub(head, 1, 16), sub(head, 17, 32), sub(head, 33, 40)
    local fixed = expires .. NOW .. size .. hex8(#attributes) .. attributes
    if stage == '' then
      call('SET', PREFIX .. 'payload:' .. id, ARGV[10 + i * width])
    else
      call('RENAME', staged, PREFIX .. 'payload:' .. id)
      call('PERSIST', PREFIX .. 'payload:' .. id)
    end
    if expires ~= NEVER then add('expiry', expires .. id) end
    if due ~= ZERO then
      later('HSET', 'requests', id, record('l', '-', id, due, 0, ZERO, ZERO, NEVER, '-', fixed))
      add('due', due .. id .. id)
      add('delayed', id)
    else
      later('HSET', 'requests', id, record('r', '-', id, NOW, 0, ZERO, ZERO, NEVER, '-', fixed))
      add('ready', id .. id .. size)
      state.ready_bytes = state.ready_bytes + number(size)
    end
  elseif stage ~= '' then
    call('UNLINK', staged)
  end
end
if ARGV[4] == '1' then call('HSET', PREFIX .. 'bookmarks', ARGV[5], ARGV[6]) end
state.pushed, state.held_bytes = state.pushed + added, state.held_bytes + bytes
changed = changed or added > 0
return answer({ 'ok', table.concat(replies) })
