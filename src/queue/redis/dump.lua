-- A page of all that is stored of the queue.
--
-- ARGV[4]  what: 'requests', 'batches', 'keys' or 'end'
-- ARGV[5]  requests, keys: the last id or key of the page before, or empty
-- ARGV[6]  the most of them, decimal
-- ARGV[7]  requests: after so many bytes of results and errors the page ends
-- Returns  requests: 'ok', the last id looked at or '', then for each its five values (`entries.lua`) and, for
--          a member of an open batch with an outcome, that (`read.lua`), else ''
--          batches: 'ok', then for each: batch, parent or '', attempt, prior, formed at, offered from or '',
--          context, '1' with a checkpoint else '0', checkpoint
--          keys: 'ok', the last key looked at or '', then what is known of each (`known_key`)
--          end: 'ok', last position, last batch, fence, pushed, done, expired, cancelled, purged, then for each
--          bookmark its source and value
-- O(log N + n) for n of them, as `list.lua`; O(n) for batches and bookmarks
local most = tonumber(ARGV[6])
local start = ARGV[5] == '' and '-' or '(' .. ARGV[5] .. 'g'

local function requests()
  local ids = ready_ids(start, most)
  for _, name in ipairs({ 'delayed', 'flight', 'done', 'dead' }) do
    for _, member in ipairs(range_of(name, start, '+', most)) do ids[#ids + 1] = sub(member, 1, 16) end
  end
  table.sort(ids)
  for i = #ids, most + 1, -1 do ids[i] = nil end
  local reply, bytes = { 'ok', ids[#ids] or '' }, 0
  for i, id in ipairs(ids) do
    local rec = call('HGET', PREFIX .. 'requests', id)
    bytes = bytes + (rec and #rec or 0)
    if bytes > tonumber(ARGV[7]) and #reply > 2 then
      reply[2] = ids[i - 1]
      break
    end
    if rec and describe(reply, id, rec) then
      local kind, batch = reply[#reply - 3], sub(reply[#reply - 2], 43, 58)
      local recorded = (kind == 'f' or kind == 'd') and call('HGET', PREFIX .. 'outcomes:' .. batch, id)
      check_outcome(batch, id, recorded)
      reply[#reply + 1] = recorded or ''
    end
  end
  return reply
end

local function open_batches()
  local reply = { 'ok' }
  for _, member in ipairs(call('ZRANGE', PREFIX .. 'offers', 0, -1)) do
    local batch = sub(member, 17)
    check_batch(batch, held_batch(batch))
    local held = call('HMGET', PREFIX .. 'batch:' .. batch, 'parent', 'attempt', 'prior', 'formed_at', 'fence',
      'context', 'checkpoint')
    local is_held, offered_from = held[5] and held[5] ~= '', sub(member, 1, 16)
    local values = {
      batch, held[1], held[2], held[3], held[4], (is_held or offered_from == ZERO) and '' or offered_from,
      held[6], held[7] and '1' or '0', held[7] or '',
    }
    for _, value in ipairs(values) do reply[#reply + 1] = value end
  end
  return reply
end

local function known_keys()
  local page = range_of('keys', start, '+', most)
  local reply = { 'ok', page[1] and sub(page[#page], 1, 32) or '' }
  for _, known in ipairs(page) do
    if sub(known, 49, 64) > NOW then reply[#reply + 1] = known end
  end
  return reply
end

local function the_end()
  local reply = { 'ok', state.last, state.last_batch, state.fence or ZERO }
  for _, name in ipairs({ 'pushed', 'done', 'expired', 'cancelled', 'purged' }) do
    reply[#reply + 1] = decimal(state[name])
  end
  for _, value in ipairs(call('HGETALL', PREFIX .. 'bookmarks')) do reply[#reply + 1] = value end
  return reply
end

local PAGES = { requests = requests, batches = open_batches, keys = known_keys, ['end'] = the_end }
return answer(PAGES[ARGV[4]]())
